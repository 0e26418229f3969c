"""Calls to a server that answers, and to one that does not: retries, budgets, limits, Ctrl-C."""

from __future__ import annotations

import gc
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from chat_server import ChatServer, completion, drops, fails, garbage, right, says, stalls, token_logprobs

from crossrank.errors import BudgetError, EndpointError, InputError
from crossrank.models.llm import Endpoint, Message, Prices, Prompt

pytest.importorskip("openai")

PROMPT = Prompt(
    (Message("user", 'Given a query "q", which?\n\nPassage A: "worth 1"\n\nPassage B: "worth 2"'),)
)


def ask(endpoint: Endpoint, number: int = 1) -> list[str]:
    return [answer.text for answer in endpoint.generate([PROMPT] * number, max_tokens=9)]


def test_a_request_is_what_the_interface_wants(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-of-mine")
    with Endpoint(
        "oracle", base_url=server.url, key_variable="MY_KEY", extra_body={"chat_template_kwargs": {"x": 1}}
    ) as endpoint:
        server.does(says("[2] > [1]"))
        answers = endpoint.generate([PROMPT], max_tokens=9)
    assert [(answer.text, answer.ended) for answer in answers] == [("[2] > [1]", "stop")]
    (call,) = server.calls
    assert call.body == {
        "model": "oracle",
        "messages": [{"role": "user", "content": PROMPT.messages[0].content}],
        "temperature": 0.0,
        "max_tokens": 9,
        "chat_template_kwargs": {"x": 1},
    }
    assert call.headers["authorization"] == "Bearer secret-of-mine"
    assert "secret" not in repr(endpoint)


def test_options_a_server_does_not_know_can_be_left_out(server):
    options = {"temperature": None, "token_limit": "max_completion_tokens"}
    with Endpoint("o1", base_url=server.url, **options) as endpoint:
        ask(endpoint)
    assert set(server.calls[0].body) == {"model", "messages", "max_completion_tokens"}


def test_address_and_key_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k1")
    with Endpoint("oracle") as endpoint:
        ask(endpoint)
    assert server.calls[0].headers["authorization"] == "Bearer k1"


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        Endpoint("gpt")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_cost": 1.0}, "prices"),
        ({"max_total_tokens": 0}, "max_total_tokens"),
        ({"token_limit": "tokens"}, "token_limit"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"model": ""}, "model"),
        ({"context_tokens": 1.5}, "context_tokens"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, named):
    with pytest.raises(InputError, match=named):
        Endpoint(**{"model": "m", "base_url": "http://localhost:1/v1", **options})


def no_choices(call):
    sent = right(call)
    sent.body["choices"] = []
    return sent


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        fails(429),
        fails(500),
        fails(503),
        fails(408),
        drops,
        garbage,
        no_choices,
    ],
    ids=["429", "500", "503", "408", "dropped", "no JSON", "no choices"],
)
def test_what_may_pass_is_tried_again(server, endpoint, failure):
    server.does(failure, failure, right)
    assert ask(endpoint) == ["Passage B"]
    assert len(server.calls) == 3
    assert (endpoint.usage.calls, endpoint.usage.retries) == (1, 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_cannot_pass_is_raised_at_once(server, endpoint, status):
    server.does(fails(status))
    with pytest.raises(EndpointError, match=rf"oracle: .*status {status}: .*failure {status}"):
        ask(endpoint)
    assert len(server.calls) == 1


def test_a_quota_that_is_used_up_is_not_waited_for(server, endpoint):
    server.does(fails(429, code="insufficient_quota"))
    with pytest.raises(EndpointError, match="429"):
        ask(endpoint)
    assert len(server.calls) == 1


def test_a_server_that_never_recovers_is_an_error_after_the_retries(server):
    server.does(fails(500))
    with (
        Endpoint("oracle", base_url=server.url, backoff_s=0.001, max_retries=2) as endpoint,
        pytest.raises(EndpointError, match=r"status 500.*after 3 attempts"),
    ):
        ask(endpoint)
    assert len(server.calls) == 3


def test_the_servers_own_waiting_time_is_kept(server, endpoint, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr("crossrank.models.llm.endpoint.asyncio.sleep", sleep)
    server.does(fails(429, Retry_After="7"), fails(429, retry_after_ms="40"), fails(429), fails(429), right)
    assert ask(endpoint) == ["Passage B"]
    assert waited[:2] == [7.0, 0.04]
    assert 0.04 <= waited[2] <= 0.05  # the third attempt's: twice doubled, and up to a quarter more
    assert 0.08 <= waited[3] <= 0.1


def test_a_server_that_asks_for_too_long_a_wait_is_an_error(server, endpoint):
    server.does(fails(429, Retry_After="86400"))
    with pytest.raises(EndpointError, match=r"wait 86400 s, longer than max_wait_s=60"):
        ask(endpoint)


def test_a_date_to_come_back_at_is_understood(server, endpoint):
    server.does(fails(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), right)  # long past
    assert ask(endpoint) == ["Passage B"]


def test_a_server_that_stalls_is_left_and_asked_again(server):
    server.does(stalls(60), right)
    with Endpoint("oracle", base_url=server.url, timeout_s=0.3, backoff_s=0.01) as endpoint:
        assert ask(endpoint) == ["Passage B"]
        assert endpoint.usage.estimated == 1  # what the first attempt took, nobody knows
    server.does(stalls(60))
    with (
        Endpoint("oracle", base_url=server.url, timeout_s=0.1, max_retries=0) as endpoint,
        pytest.raises(EndpointError, match="timeout"),
    ):
        ask(endpoint)


def test_nobody_listening_is_an_error():
    with ChatServer() as gone:
        url = gone.url
    with (
        Endpoint("oracle", base_url=url, max_retries=2, backoff_s=0.01, api_key="k") as endpoint,
        pytest.raises(EndpointError, match="cannot be reached"),
    ):
        ask(endpoint)
    usage = endpoint.usage
    assert usage.retries == 2
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (0, 0, 0)  # nothing was sent


def test_a_server_that_takes_no_connection_is_charged_nothing():
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # more than the queue takes
            each = sockets.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        with (
            Endpoint("oracle", base_url=url, max_retries=0, timeout_s=3, api_key="k") as endpoint,
            pytest.raises(EndpointError, match="cannot be reached"),
        ):
            ask(endpoint)
    assert (endpoint.usage.tokens, endpoint.usage.estimated) == (0, 0)


def test_a_key_that_the_server_repeats_is_not_shown(server):
    message = {"error": {"message": "bad key sk-very-secret given", "code": None}}
    server.does(lambda call: type(right(call))(message, 401))
    with (
        Endpoint("oracle", base_url=server.url, api_key="sk-very-secret") as endpoint,
        pytest.raises(EndpointError, match=r"bad key \*\*\* given") as raised,
    ):
        ask(endpoint)
    assert "very-secret" not in str(raised.value)


def test_one_failure_cancels_the_other_calls(server, endpoint):
    server.does(fails(400), stalls(60))
    with pytest.raises(EndpointError):
        ask(endpoint, 5)
    deadline = time.monotonic() + 10
    while server.hung_up < len(server.calls) - 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.hung_up == len(server.calls) - 1  # they do not stay open
    server.does(right)
    assert ask(endpoint) == ["Passage B"]


# --- limits -----------------------------------------------------------------------------------------------


def test_no_more_calls_at_a_time_than_allowed(server):
    server.does(stalls(0.05))
    with Endpoint("oracle", base_url=server.url, concurrency=3) as endpoint:
        assert ask(endpoint, 12) == ["Passage B"] * 12
        assert server.most_at_once == 3
        server.most_at_once = 0
        threads = [threading.Thread(target=ask, args=(endpoint, 4)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_at_once == 3  # of all threads together


def test_tokens_and_cost_are_counted(server):
    server.does(right)
    with Endpoint("oracle", base_url=server.url, prices=Prices(prompt=2.0, completion=10.0)) as endpoint:
        ask(endpoint, 4)
        usage = endpoint.usage
    words = len(PROMPT.messages[0].content.split())
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (4, 4 * words, 12)
    assert usage.cost == pytest.approx((4 * words * 2 + 12 * 10) / 1e6)
    assert usage.estimated == 0


def test_a_server_that_does_not_count_is_estimated(server, endpoint):
    def silent(call):
        sent = right(call)
        del sent.body["usage"]
        return sent

    server.does(silent)
    ask(endpoint)
    assert endpoint.usage.estimated == 1
    assert endpoint.usage.prompt_tokens >= len(PROMPT.messages[0].content) / 4


@pytest.mark.parametrize("concurrency", [1, 8])
def test_no_call_goes_over_the_budget_of_tokens(server, concurrency):
    reserved = -(-len(PROMPT.messages[0].content) // 3) + 8 + 9
    words = len(PROMPT.messages[0].content.split()) + 3
    budget = 5 * words + reserved
    with Endpoint(
        "oracle", base_url=server.url, max_total_tokens=budget, concurrency=concurrency
    ) as endpoint:
        with pytest.raises(
            BudgetError, match=r"budget of .* tokens is used up.*could take.*done so far"
        ) as e:
            ask(endpoint, 1000)
        assert endpoint.usage.tokens <= budget
        assert e.value.usage.tokens <= budget
        assert endpoint.usage.calls == len(server.calls) == 6  # the last fits as long as its largest does


def test_no_call_goes_over_the_budget_of_money(server):
    with Endpoint(
        "oracle", base_url=server.url, prices=Prices(1_000_000, 1_000_000), max_cost=100, concurrency=1
    ) as endpoint:
        with pytest.raises(BudgetError, match=r"budget of 100 is used up"):
            ask(endpoint, 100)
        assert 0 < endpoint.usage.cost <= 100


def test_a_prompt_beyond_the_context_is_an_error_before_any_call(server):
    with Endpoint("oracle", base_url=server.url, context_tokens=50) as endpoint:
        long = Prompt((Message("user", "word " * 100),))
        with pytest.raises(InputError, match=r"do not fit into the 50 of oracle"):
            endpoint.generate([PROMPT, long], max_tokens=4)
    assert server.calls == []


def test_own_counting_of_tokens_is_used(server):
    server.does(says("x"))
    with Endpoint("o", base_url=server.url, context_tokens=20, count_tokens=lambda text: 1) as endpoint:
        endpoint.generate([Prompt((Message("user", "word " * 100),))], max_tokens=4)
        with pytest.raises(InputError):
            endpoint.generate([PROMPT], max_tokens=12)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "text",
        7,
        None,
        {"choices": None},
        {"choices": {}},
        {"choices": "x"},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": ["a", {"b": 1}]}, "finish_reason": 5}]},
        {"choices": [{"message": {"content": 5}, "logprobs": {"content": [{}]}}], "usage": "none"},
        {"choices": [{"message": {"content": "x"}, "logprobs": 5}], "usage": {"prompt_tokens": -1}},
        {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": 1, "logprob": "a"}]}}]},
        {"error": {"message": "overloaded"}},
    ],
    ids=lambda body: repr(body)[:60],
)
def test_bodies_of_any_form_are_an_answer_or_the_projects_error(server, body):
    server.does(lambda call: type(right(call))(body))
    with Endpoint("oracle", base_url=server.url, max_retries=1, backoff_s=0.001) as endpoint:
        for ask_it in (
            lambda: endpoint.generate([PROMPT], max_tokens=3)[0].text,
            lambda: endpoint.choose([PROMPT], ("yes", "no")),
        ):
            try:
                found = ask_it()
            except EndpointError:
                continue
            assert isinstance(found, str) or all(map(math.isnan, found[0]))


# --- how an answer ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "text", "ended"),
    [
        (says("[1] >", finish="length"), "[1] >", "length"),
        (says(None, finish="content_filter"), "", "refused"),
        (says(None, refusal="I will not"), "", "refused"),
        (says(""), "", "stop"),
        (says(None), "", "stop"),
    ],
)
def test_how_an_answer_ended_is_told(server, endpoint, reply, text, ended):
    server.does(reply)
    (answer,) = endpoint.generate([PROMPT], max_tokens=4)
    assert (answer.text, answer.ended) == (text, ended)


# --- log-probabilities --------------------------------------------------------------------------------------


def shows(shown):
    return lambda call: type(right(call))(completion("x", call=call, logprobs=token_logprobs(shown)))


def test_choices_are_read_in_all_their_forms(server, endpoint):
    shown = {
        "Yes": math.log(0.5),
        " yes": math.log(0.2),
        "▁No": math.log(0.1),
        "Ġno": math.log(0.1),
        "z": -5.0,
    }
    server.does(shows(shown))
    found = endpoint.choose([PROMPT], ("yes", "no"))
    assert found.shape == (1, 2)
    assert found[0] == pytest.approx([math.log(0.7), math.log(0.2)])
    assert server.calls[0].body["logprobs"] is True
    assert server.calls[0].body["top_logprobs"] == 20
    assert server.calls[0].body["max_tokens"] == 1


def test_a_choice_out_of_sight_is_bounded(server, endpoint):
    server.does(shows({"Yes": -0.01, "y": -4.0, "z": -9999.0}))
    assert endpoint.choose([PROMPT], ("yes", "no"))[0] == pytest.approx([-0.01, -50.0])
    server.does(shows({"maybe": -0.01, "y": -4.0}))
    assert all(map(math.isnan, endpoint.choose([PROMPT], ("yes", "no"))[0]))


def test_a_server_without_log_probabilities_is_an_error(server, endpoint):
    server.does(says("Yes"))
    with pytest.raises(EndpointError, match="gives no log-probabilities"):
        endpoint.choose([PROMPT], ("yes", "no"))


def test_no_answer_has_no_log_probabilities(server, endpoint):
    server.does(says("", logprobs={"content": [], "refusal": None}))
    assert all(map(math.isnan, endpoint.choose([PROMPT], ("yes", "no"))[0]))


# --- threads ------------------------------------------------------------------------------------------------


@pytest.fixture
def threads_of_calls() -> Callable[[], list[threading.Thread]]:
    """The threads of endpoints that were not there when the test began."""
    before = set(threading.enumerate())

    def found() -> list[threading.Thread]:
        now = set(threading.enumerate()) - before
        return [thread for thread in now if thread.name == "crossrank-llm"]

    return found


def test_no_thread_before_the_first_call_and_none_after_the_end(server, threads_of_calls):
    endpoint = Endpoint("oracle", base_url=server.url)
    assert threads_of_calls() == []
    ask(endpoint)
    assert len(threads_of_calls()) == 1
    endpoint.close()
    assert threads_of_calls() == []
    assert ask(endpoint) == ["Passage B"]  # opens again
    del endpoint
    gc.collect()
    assert threads_of_calls() == []


def test_it_can_be_called_inside_a_running_event_loop(endpoint):
    import asyncio

    async def caller():
        return ask(endpoint)

    assert asyncio.run(caller()) == ["Passage B"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that was started in the background may ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends a signal to a thread")
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_cancels_what_is_under_way(server, endpoint, threads_of_calls):
    server.does(stalls(60))

    def interrupt():
        while not server.calls:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        ask(endpoint, 3)
    interrupter.join()
    deadline = time.monotonic() + 10
    while server.hung_up < len(server.calls) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.hung_up == len(server.calls)
    server.does(right)
    assert ask(endpoint) == ["Passage B"]
    endpoint.close()
    assert threads_of_calls() == []
