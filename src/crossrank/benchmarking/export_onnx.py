"""Export a cross-encoder to ONNX for libraries that read such files; runs as a script, without crossrank.

Writes onnx/model.onnx (float32), onnx/model_dynamic_int8.onnx (`quantize_dynamic` with its defaults) and
onnx/model_fused_dynamic_int8.onnx (the same, after ONNX Runtime's optimiser for transformers has fused
attention, GELU and norms), and the file of special tokens that fastembed asks for. Its environment needs
torch, transformers, onnx and onnxruntime.

    python export_onnx.py FOLDER
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import warnings
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Export the folder that the command line names."""
    import onnx
    import torch
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(sys.argv[1])
    target = folder / "onnx"
    target.mkdir(exist_ok=True)
    # The optimiser knows this form of attention.
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(
        json.dumps(tokenizer.special_tokens_map), encoding="utf-8"
    )
    # In the order of the signature: the exporter goes by it, not by the names.
    names = [
        name for name in inspect.signature(model.forward).parameters if name in tokenizer.model_input_names
    ]
    axes = {name: {0: "batch", 1: "length"} for name in names}
    exported = str(target / "model.onnx")
    example = tokenizer([("a", "b"), ("c", "d")], return_tensors="pt")
    with warnings.catch_warnings():  # of the exporter about itself
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (),
            exported,
            kwargs={name: example[name] for name in names},
            input_names=names,
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    logging.disable(logging.WARNING)  # "please consider to run pre-processing"
    quantize_dynamic(exported, target / "model_dynamic_int8.onnx")
    config = model.config
    fused = str(target / "fused.onnx")
    optimize_model(
        exported, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    ).save_model_to_file(fused)
    # Shape inference does not know the fused operators.
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(fused, target / "model_fused_dynamic_int8.onnx", extra_options=options)


if __name__ == "__main__":
    main()
