/* One layer of a BERT encoder with static int8 weights, as an operator of ONNX Runtime.

   It computes what the graph of encoders/bert.py and int8.py says, with the same integers: inputs rounded to uint8,
   products with int8 weights summed in 32 bits, everything else in float32, but for what attention multiplies, which
   is rounded to some 14 bits. It is faster since nothing but the layer's input and output leaves the cache: the
   scale, the bias and GELU are applied to sums as they come, attention keeps the scores of a few queries at a time,
   and a block of tokens goes through the whole layer before the next one begins.

   A row of the output depends on its own text alone: blocks and tiles change which sums are computed together, and
   never the order within a sum.

   Needs AVX-512 with VNNI; native/__init__.py looks before it loads this. The layer's weights come as one blob of
   bytes that native/__init__.py packs; `Layer` below is its head. */

#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
  PANEL = 64,       /* output features that are computed together: four registers of 16 */
  TILE_ROWS = 6,    /* times four registers of sums: 24 of the 32 there are */
  BLOCK_ROWS = 192, /* tokens that go through attention together, if a text is not longer */
  INNER_ROWS = 96,  /* tokens that go through the feed-forward layers together */
  CACHED_WEIGHTS = 640 * 1024 /* bytes of weights that tile after tile is multiplied with: in a core's second cache */
};

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

/* ---- the blob ------------------------------------------------------------------------------------------------ */

/* A linear layer. Offsets are bytes from the beginning of the blob. */
typedef struct {
  int64_t in, out;
  int64_t zero_point; /* of the inputs */
  int64_t by_row;     /* whether inputs are divided by the largest |value| of their row */
  int64_t weights;    /* int8 (out / 64, in / 4, 64, 4) */
  int64_t start;      /* int32 (out,): what sums begin with, the part of the zero point */
  int64_t scale;      /* float32 (out,) */
  int64_t bias;       /* float32 (out,) */
  int64_t factor;     /* float32 (in,): inputs are multiplied by it before they are rounded */
  int64_t step;       /* float32 (1,): of rounding, where it is by row; else it is in the factor */
} Linear;

typedef struct {
  int64_t hidden, inner, heads, first_only;
  int64_t value_alike, query_alike;    /* whether inputs are rounded as for the key, and as for the value */
  int64_t epsilon;                     /* float32 (1,) */
  int64_t attention_norm, output_norm; /* float32 (2, hidden): scale, shift */
  Linear query, key, value, mix, up, down;
} Layer;

INLINE const float *floats(const Layer *layer, int64_t offset) {
  return (const float *)((const char *)layer + offset);
}

/* ---- functions of 16 numbers --------------------------------------------------------------------------------- */

/* Phi(x) - 1/2 of the normal distribution for 0 <= x < END, by cubics on equal pieces: within 2e-7. At END float32
   has no number between it and 1/2 any more. */
enum { PIECES = 32, DEGREE = 3 };
static const double END = 5.6;
static float normal[DEGREE + 1][PIECES]; /* coefficients, the constant first, of t in 0 .. 1 */

__attribute__((constructor)) static void fill_normal(void) {
  for (int piece = 0; piece < PIECES; piece++) {
    double at[DEGREE + 1], y[DEGREE + 1], c[DEGREE + 1] = {0};
    for (int i = 0; i <= DEGREE; i++) { /* through the values at Chebyshev's points, by Newton's differences */
      at[i] = 0.5 - 0.5 * cos(M_PI * (i + 0.5) / (DEGREE + 1));
      y[i] = 0.5 * erf((piece + at[i]) * END / PIECES / M_SQRT2);
    }
    for (int order = 1; order <= DEGREE; order++)
      for (int i = DEGREE; i >= order; i--) y[i] = (y[i] - y[i - 1]) / (at[i] - at[i - order]);
    for (int i = DEGREE; i >= 0; i--) { /* c = c (t - at[i]) + y[i] */
      for (int j = DEGREE; j > 0; j--) c[j] = c[j - 1] - at[i] * c[j];
      c[0] = y[i] - at[i] * c[0];
    }
    for (int i = 0; i <= DEGREE; i++) normal[i][piece] = (float)c[i];
  }
}

INLINE __m512 look_up(const float table[PIECES], __m512i piece) {
  return _mm512_permutex2var_ps(_mm512_loadu_ps(table), piece, _mm512_loadu_ps(table + 16));
}

/* x Phi(x) = x / 2 + |x| (Phi(|x|) - 1/2): the form with the error function. */
INLINE __m512 gelu(__m512 x) {
  const __m512 size = _mm512_abs_ps(x);
  const __m512 at = _mm512_min_ps(_mm512_mul_ps(size, _mm512_set1_ps((float)(PIECES / END))), _mm512_set1_ps(PIECES - 1e-5f));
  const __m512i piece = _mm512_cvttps_epi32(at);
  const __m512 t = _mm512_reduce_ps(at, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); /* what is behind the point */
  __m512 phi = look_up(normal[3], piece);
  phi = _mm512_fmadd_ps(phi, t, look_up(normal[2], piece));
  phi = _mm512_fmadd_ps(phi, t, look_up(normal[1], piece));
  phi = _mm512_fmadd_ps(phi, t, look_up(normal[0], piece));
  return _mm512_fmadd_ps(size, phi, _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
}

/* 2^x for x <= 0, by the polynomial of degree 5 that has the least relative error for 0 <= x < 1: 8e-8. Below 2^-100
   all is 2^-100: nothing beside the largest, 1, and no denormal number, which takes many times as long. */
INLINE __m512 exp2_(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* above the next integer below */
  __m512 y = _mm512_set1_ps(1.877576899e-3f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(8.989340305e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.582631707e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.401536178e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.931530730e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.999999251e-1f));
  return _mm512_scalef_ps(y, x); /* takes the integer itself */
}

/* Instructions by name: GCC copies the sums of the intrinsics from register to register, at half the speed. */
INLINE __m512i add_products(__m512i sum, __m512i bytes, __m512i weights) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(weights));
  return sum;
}

INLINE __m512i add_pairs(__m512i sum, __m512i pairs, __m512i others) { /* two products of int16 each */
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(others));
  return sum;
}

/* ---- linear layers ------------------------------------------------------------------------------------------- */

INLINE __m512i to_integers(__m512 x, __m512i zero_point) {
  return _mm512_add_epi32(_mm512_cvtps_epi32(x), zero_point); /* to nearest, ties to even */
}

/* Store 64 numbers as bytes: rounded, and cut off at 0 and 255. */
INLINE void store_bytes(uint8_t *to, const __m512 x[4], __m512i zero_point) {
  const __m512i first = _mm512_packs_epi32(to_integers(x[0], zero_point), to_integers(x[1], zero_point));
  const __m512i second = _mm512_packs_epi32(to_integers(x[2], zero_point), to_integers(x[3], zero_point));
  /* packing goes by quarters of registers: four numbers of each, four times */
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second)));
}

/* A block's rows are close together; in the layer's input and output they are where `places` says, or, where that is
   NULL, close together, too. */
INLINE size_t placed(const size_t *places, size_t row) { return places ? places[row] : row; }

INLINE __m512 scaled(const float *x, const float *factor) {
  return _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_loadu_ps(factor));
}

/* Round rows of inputs to uint8. `largest` (rows) is written where the layer wants it. Rows go through each step in
   groups: each alone would wait for itself. */
static void round_rows(const Layer *layer, const Linear *linear, const float *inputs, const size_t *places, size_t rows,
                       uint8_t *rounded, float *largest) {
  const size_t size = linear->in;
  const float *factor = floats(layer, linear->factor), step = *floats(layer, linear->step);
  const __m512i zero_point = _mm512_set1_epi32((int)linear->zero_point);
  for (size_t start = 0; start < rows; start += TILE_ROWS) {
    const size_t end = rows - start < TILE_ROWS ? rows : start + TILE_ROWS;
    __m512 each[4];
    for (size_t row = start; linear->by_row && row < end; row++) {
      const float *x = inputs + placed(places, row) * size;
      UNROLL for (int j = 0; j < 4; j++) each[j] = _mm512_set1_ps(1e-12f);
      for (size_t i = 0; i < size; i += 64)
        UNROLL for (int j = 0; j < 4; j++)
          each[j] = _mm512_max_ps(each[j], _mm512_abs_ps(scaled(x + i + 16 * j, factor + i + 16 * j)));
      const __m512 most = _mm512_max_ps(_mm512_max_ps(each[0], each[1]), _mm512_max_ps(each[2], each[3]));
      largest[row] = _mm512_reduce_max_ps(most);
    }
    for (size_t row = start; row < end; row++) {
      const float *x = inputs + placed(places, row) * size;
      const __m512 by = _mm512_set1_ps(linear->by_row ? 1.0f / (largest[row] * step) : 1.0f);
      for (size_t i = 0; i < size; i += 64) {
        UNROLL for (int j = 0; j < 4; j++) each[j] = _mm512_mul_ps(scaled(x + i + 16 * j, factor + i + 16 * j), by);
        store_bytes(rounded + row * size + i, each, zero_point);
      }
    }
  }
}

/* What becomes of a product: it is stored, after GELU, or after GELU rounded for the layer `next`. */
typedef enum { PLAIN, GELU, GELU_ROUNDED } After;

typedef struct {
  const uint8_t *x;     /* (rows, in) */
  const float *largest; /* of each row of x, where the layer is by row */
  float *out;           /* (rows, out) */
  uint8_t *rounded;
  const Linear *next;
} Product;

/* Sums of a tile are variables of their own, since compilers keep arrays of registers in memory: up to six rows of
   up to four registers. What is behind `rows` and `columns`, constants where this is inlined, costs nothing. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define EACH(DO, i)                \
  if (i < rows) {                  \
    DO(i, 0)                       \
    if (columns > 1) { DO(i, 1) }  \
    if (columns > 2) { DO(i, 2) }  \
    if (columns > 3) { DO(i, 3) }  \
  }

/* The sums of `rows` rows (a constant) with one panel of weights: to (rows, PANEL). */
INLINE void multiply_tile(const uint8_t *x, size_t in, const int8_t *weights, const int32_t *start, int32_t *sums,
                          const int rows) {
  enum { columns = 4 };
#define DECLARE(i) __m512i s##i##0, s##i##1, s##i##2, s##i##3;
  EACH_ROW(DECLARE)
#define START_ONE(i, j) s##i##j = _mm512_loadu_si512(start + 16 * j);
#define START(i) EACH(START_ONE, i)
  EACH_ROW(START)
  for (size_t k = 0; k < in; k += 4, weights += 4 * PANEL) {
    const __m512i w0 = _mm512_loadu_si512(weights), w1 = _mm512_loadu_si512(weights + 64);
    const __m512i w2 = _mm512_loadu_si512(weights + 128), w3 = _mm512_loadu_si512(weights + 192);
    __m512i value;
    int32_t four;
#define ADD_ONE(i, j) s##i##j = add_products(s##i##j, value, w##j);
#define ADD(i)                             \
  if (i < rows) {                          \
    memcpy(&four, x + i * in + k, 4);      \
    value = _mm512_set1_epi32(four);       \
  }                                        \
  EACH(ADD_ONE, i)
    EACH_ROW(ADD)
  }
#define STORE_ONE(i, j) _mm512_storeu_si512(sums + PANEL * i + 16 * j, s##i##j);
#define STORE(i) EACH(STORE_ONE, i)
  EACH_ROW(STORE)
}

/* Up to six rows. Not inlined: beside what becomes of the sums, compilers would not keep them in registers. */
static __attribute__((noinline)) void multiply_panel(const uint8_t *x, size_t in, const int8_t *weights,
                                                     const int32_t *start, int32_t *sums, size_t rows) {
  switch (rows) {
    case 1: multiply_tile(x, in, weights, start, sums, 1); break;
    case 2: multiply_tile(x, in, weights, start, sums, 2); break;
    case 3: multiply_tile(x, in, weights, start, sums, 3); break;
    case 4: multiply_tile(x, in, weights, start, sums, 4); break;
    case 5: multiply_tile(x, in, weights, start, sums, 5); break;
    default: multiply_tile(x, in, weights, start, sums, 6);
  }
}

/* A tile's sums (rows, PANEL), as numbers of the output, to their places. */
INLINE void finish_tile(const Layer *layer, const Linear *linear, const Product *p, size_t row, size_t column,
                        const int32_t *sums, size_t rows, const After after) {
  const float *scale = floats(layer, linear->scale) + column, *bias = floats(layer, linear->bias) + column;
  for (size_t i = row; i < row + rows; i++, sums += PANEL) {
    const __m512 largest = _mm512_set1_ps(linear->by_row ? p->largest[i] : 1.0f);
    __m512 y[4];
    UNROLL for (int j = 0; j < 4; j++) {
      y[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums + 16 * j)), _mm512_loadu_ps(scale + 16 * j));
      y[j] = _mm512_fmadd_ps(y[j], largest, _mm512_loadu_ps(bias + 16 * j));
      if (after != PLAIN) y[j] = gelu(y[j]);
    }
    if (after == GELU_ROUNDED) {
      const float *factor = floats(layer, p->next->factor) + column;
      UNROLL for (int j = 0; j < 4; j++) y[j] = _mm512_mul_ps(y[j], _mm512_loadu_ps(factor + 16 * j));
      store_bytes(p->rounded + i * linear->out + column, y, _mm512_set1_epi32((int)p->next->zero_point));
    } else {
      UNROLL for (int j = 0; j < 4; j++) _mm512_storeu_ps(p->out + i * linear->out + column + 16 * j, y[j]);
    }
  }
}

/* As many panels as stay in the cache, and tile after tile with all of them. */
INLINE void multiply_rows(const Layer *layer, const Linear *linear, const Product *p, size_t rows, const After after) {
  const size_t in = linear->in, panels = linear->out / PANEL, fit = CACHED_WEIGHTS / (in * PANEL), most = fit ? fit : 1;
  const int8_t *weights = (const int8_t *)layer + linear->weights;
  const int32_t *start = (const int32_t *)((const char *)layer + linear->start);
  int32_t sums[TILE_ROWS * PANEL] __attribute__((aligned(64)));
  for (size_t first = 0; first < panels; first += most) {
    const size_t end = panels - first < most ? panels : first + most;
    for (size_t row = 0; row < rows; row += TILE_ROWS) {
      const size_t count = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
      for (size_t column = first * PANEL; column < end * PANEL; column += PANEL) {
        multiply_panel(p->x + row * in, in, weights + column * in, start + column, sums, count);
        finish_tile(layer, linear, p, row, column, sums, count, after);
      }
    }
  }
}

static void multiply_plain(const Layer *layer, const Linear *linear, const Product *p, size_t rows) {
  multiply_rows(layer, linear, p, rows, PLAIN);
}

static void multiply_gelu(const Layer *layer, const Linear *linear, const Product *p, size_t rows) {
  multiply_rows(layer, linear, p, rows, GELU);
}

static void multiply_gelu_rounded(const Layer *layer, const Linear *linear, const Product *p, size_t rows) {
  multiply_rows(layer, linear, p, rows, GELU_ROUNDED);
}

/* ---- attention ----------------------------------------------------------------------------------------------- */

/* Attention multiplies int16, in pairs, and sums them in 32 bits: twice as fast as float32. Keys and queries of a head,
   and each feature of its values, are rounded by the largest number among the text's tokens; weights of values by each
   query's sum of them, so that no sum leaves the 32 bits. A weight below 1 / 65534 of the query's largest counts as 0. */
enum { VALUE_LEVELS = 8191, WEIGHT_LEVELS = 32767, MOST_OF_A_SUM = INT32_MAX / VALUE_LEVELS };

/* Of keys and queries: 8191 in heads of 32 features, 4095 in heads of 128. */
static float key_levels(size_t size) {
  const double levels = floor(sqrt(INT32_MAX / (double)size));
  return levels < 32767 ? (float)levels : 32767.0f;
}

/* A product of attention: (rows, size) a by (size, columns) b, pairs of int16 all. Rows of the result are multiplied by
   `by_row` and columns by `by_column`, where they are not NULL. */
typedef struct {
  const int32_t *a, *b;
  size_t a_stride, b_stride, size;
  float *out;
  size_t out_stride;
  const float *by_row, *by_column;
} PairProduct;

/* `rows` rows and 16 x `columns` columns of it from `column` on; all but the latter are constants. */
INLINE void pair_tile(const PairProduct *p, size_t column, const int rows, const int columns) {
  const int32_t *a = p->a, *b = p->b + column;
  const size_t a_stride = p->a_stride, size = p->size;
  float *out = p->out + column;
  const __m512i zero = _mm512_setzero_si512();
#define DECLARE_PAIRS(i) __m512i s##i##0 = zero, s##i##1 = zero, s##i##2 = zero, s##i##3 = zero;
  EACH_ROW(DECLARE_PAIRS)
  for (size_t k = 0; k < size; k++, b += p->b_stride) {
    const __m512i b0 = _mm512_loadu_si512(b), b1 = columns > 1 ? _mm512_loadu_si512(b + 16) : zero;
    const __m512i b2 = columns > 2 ? _mm512_loadu_si512(b + 32) : zero;
    const __m512i b3 = columns > 3 ? _mm512_loadu_si512(b + 48) : zero;
    __m512i value;
#define ADD_PAIR(i, j) s##i##j = add_pairs(s##i##j, value, b##j);
#define ADD_PAIRS(i)                                            \
  if (i < rows) value = _mm512_set1_epi32(a[i * a_stride + k]); \
  EACH(ADD_PAIR, i)
    EACH_ROW(ADD_PAIRS)
  }
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 by;
#define BY_COLUMN(j) (p->by_column ? _mm512_mul_ps(by, _mm512_loadu_ps(p->by_column + column + 16 * j)) : by)
#define STORE_PAIR(i, j) \
  _mm512_storeu_ps(out + i * p->out_stride + 16 * j, _mm512_mul_ps(_mm512_cvtepi32_ps(s##i##j), BY_COLUMN(j)));
#define STORE_PAIRS(i)                                              \
  if (i < rows) by = p->by_row ? _mm512_set1_ps(p->by_row[i]) : one; \
  EACH(STORE_PAIR, i)
  EACH_ROW(STORE_PAIRS)
}

/* Up to six rows. */
INLINE void pair_rows(const PairProduct *p, size_t column, size_t rows, const int columns) {
  switch (rows) {
    case 1: pair_tile(p, column, 1, columns); break;
    case 2: pair_tile(p, column, 2, columns); break;
    case 3: pair_tile(p, column, 3, columns); break;
    case 4: pair_tile(p, column, 4, columns); break;
    case 5: pair_tile(p, column, 5, columns); break;
    default: pair_tile(p, column, 6, columns);
  }
}

static void pair_product(const PairProduct *p, size_t rows, size_t columns) {
  for (size_t column = 0; column < columns; column += 64) {
    switch ((columns - column) / 16) {
      case 1: pair_rows(p, column, rows, 1); break;
      case 2: pair_rows(p, column, rows, 2); break;
      case 3: pair_rows(p, column, rows, 3); break;
      default: pair_rows(p, column, rows, 4);
    }
  }
}

/* 16 rows of 16 numbers to columns: neighbours change places at distances 1, 2, 4 and 8. */
INLINE void transpose16(__m512 r[16]) {
  __m512 t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/* 32 integers as 16 pairs of int16, neighbours together. */
INLINE __m512i pair_up(__m512i first, __m512i second) {
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7); /* packing goes by quarters of registers */
  return _mm512_permutexvar_epi64(order, _mm512_packs_epi32(first, second));
}

INLINE __m512i to_levels(const float *x, __m512 by) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), by));
}

/* 32 of `size` numbers from `i` on, times `by`, as 16 pairs of int16; zeros behind the last. */
INLINE __m512i pairs_at(const float *x, size_t i, size_t size, __m512 by) {
  return pair_up(to_levels(x + i, by), i + 16 < size ? to_levels(x + i + 16, by) : _mm512_setzero_si512());
}

/* The largest |number| of (count, size), rows `stride` apart. */
INLINE float largest_of(const float *x, size_t stride, size_t count, size_t size) {
  __m512 most = _mm512_set1_ps(1e-12f);
  for (size_t row = 0; row < count; row++, x += stride)
    for (size_t i = 0; i < size; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  return _mm512_reduce_max_ps(most);
}

/* One head's keys (count, size), rows `stride` apart, times `by`, to columns of pairs: (size / 2, padded), a key's
   neighbouring numbers together, zeros behind the last key. */
static void keys_to_columns(const float *keys, size_t stride, size_t count, size_t size, float by, int32_t *columns,
                            size_t padded) {
  const __m512 times = _mm512_set1_ps(by);
  for (size_t key = 0; key < padded; key += 16) {
    for (size_t i = 0; i < size; i += 32) {
      __m512 block[16];
      UNROLL for (int j = 0; j < 16; j++) {
        const float *from = keys + (key + j) * stride;
        block[j] = key + j < count ? _mm512_castsi512_ps(pairs_at(from, i, size, times)) : _mm512_setzero_ps();
      }
      transpose16(block);
      int32_t *to = columns + i / 2 * padded + key;
      const int rows = i + 16 < size ? 16 : 8;
      for (int j = 0; j < rows; j++) _mm512_storeu_ps(to + j * padded, block[j]);
    }
  }
}

/* One head's values (count, size), rows `stride` apart, to pairs of neighbouring rows: ((count + 1) / 2, size). What a
   level of each feature is worth goes to `steps` (size,). */
static void values_to_pairs(const float *values, size_t stride, size_t count, size_t size, int32_t *pairs,
                            float *steps) {
  for (size_t i = 0; i < size; i += 16) {
    const float *from = values + i;
    __m512 most = _mm512_set1_ps(1e-12f);
    for (size_t row = 0; row < count; row++)
      most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(from + row * stride)));
    const __m512 levels = _mm512_set1_ps(VALUE_LEVELS), by = _mm512_div_ps(levels, most);
    _mm512_storeu_ps(steps + i, _mm512_div_ps(most, levels));
    for (size_t row = 0; row < count; row += 2, from += 2 * stride) {
      const __m512i even = to_levels(from, by);
      const __m512i odd = row + 1 < count ? to_levels(from + stride, by) : _mm512_setzero_si512();
      const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
      _mm512_storeu_si512(pairs + row / 2 * size + i, pair);
    }
  }
}

/* The weights 2^(scale (score - largest)) of up to six queries' scores (rows, padded), rounded, as pairs with zeros from
   `count` to `padded`; scores are overwritten. 1 / the sum of a row's rounded weights goes to `shares`, which holds other
   numbers of the row before. Rows go through each step together: each alone would wait for itself. */
static void soften(float *scores, size_t rows, size_t count, size_t padded, float scale, int32_t *weights,
                   float *shares) {
  const size_t last = (count - 1) / 16 * 16;
  const __mmask16 mask = (__mmask16)(0xffff >> (last + 16 - count));
  const __m512 lowest = _mm512_set1_ps(-INFINITY), by = _mm512_set1_ps(scale);
  for (size_t row = 0; row < rows; row++) {
    const float *from = scores + row * padded;
    __m512 most = _mm512_mask_loadu_ps(lowest, mask, from + last);
    for (size_t i = 0; i < last; i += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(from + i));
    shares[row] = -scale * _mm512_reduce_max_ps(most);
  }
  for (size_t row = 0; row < rows; row++) {
    float *from = scores + row * padded;
    const __m512 shift = _mm512_set1_ps(shares[row]);
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < last; i += 16) {
      const __m512 weight = exp2_(_mm512_fmadd_ps(_mm512_loadu_ps(from + i), by, shift));
      _mm512_storeu_ps(from + i, weight);
      sum = _mm512_add_ps(sum, weight);
    }
    const __m512 weight = _mm512_maskz_mov_ps(mask, exp2_(_mm512_fmadd_ps(_mm512_loadu_ps(from + last), by, shift)));
    _mm512_storeu_ps(from + last, weight);
    if (last + 16 < padded) _mm512_storeu_ps(from + last + 16, _mm512_setzero_ps());
    const float most_levels = (float)(MOST_OF_A_SUM - (int64_t)count) / _mm512_reduce_add_ps(_mm512_add_ps(sum, weight));
    shares[row] = most_levels < WEIGHT_LEVELS ? most_levels : WEIGHT_LEVELS;
  }
  for (size_t row = 0; row < rows; row++) {
    const float *from = scores + row * padded;
    const __m512 levels = _mm512_set1_ps(shares[row]);
    __m512i total = _mm512_setzero_si512();
    for (size_t i = 0; i < padded; i += 32) {
      const __m512i pairs = pair_up(to_levels(from + i, levels), to_levels(from + i + 16, levels));
      _mm512_storeu_si512(weights + (row * padded + i) / 2, pairs);
      total = add_pairs(total, pairs, _mm512_set1_epi16(1));
    }
    shares[row] = 1.0f / (float)_mm512_reduce_add_epi32(total);
  }
}

/* What attention needs beside its inputs and outputs, for one head and six queries, in pairs but scores and steps. */
typedef struct {
  int32_t *columns; /* (size / 2, padded) keys */
  int32_t *values;  /* (padded / 2, size) */
  int32_t *queries; /* (6, size / 2), each in a multiple of 16 pairs */
  int32_t *weights; /* (6, padded / 2) */
  float *scores;    /* (6, padded) */
  float *steps;     /* (size,) of values */
} AttentionScratch;

static size_t pad_keys(size_t keys) { return (keys + 31) / 32 * 32; }

/* Attention of one text. `query` (queries, hidden) is replaced by the mixtures of values. */
static void attention(const Layer *layer, float *query, size_t queries, const float *key, const float *value,
                      size_t keys, const AttentionScratch *s) {
  const size_t hidden = layer->hidden, size = hidden / layer->heads, padded = pad_keys(keys);
  const size_t query_stride = (size + 31) / 32 * 16;
  const float levels = key_levels(size), power = (float)(1.4426950408889634 / sqrt((double)size)); /* of 2, not of e */
  for (size_t head = 0; head < hidden; head += size) {
    const float query_step = largest_of(query + head, hidden, queries, size) / levels;
    const float key_step = largest_of(key + head, hidden, keys, size) / levels;
    const float scale = power * query_step * key_step;
    const __m512 by = _mm512_set1_ps(1.0f / query_step);
    keys_to_columns(key + head, hidden, keys, size, 1.0f / key_step, s->columns, padded);
    values_to_pairs(value + head, hidden, keys, size, s->values, s->steps);
    for (size_t row = 0; row < queries; row += TILE_ROWS) {
      const size_t rows = queries - row < TILE_ROWS ? queries - row : TILE_ROWS;
      float shares[TILE_ROWS], *mixed = query + row * hidden + head;
      for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < size; j += 32)
          _mm512_storeu_si512(s->queries + i * query_stride + j / 2, pairs_at(mixed + i * hidden, j, size, by));
      const PairProduct scores = {.a = s->queries, .a_stride = query_stride, .b = s->columns, .b_stride = padded,
                                  .size = size / 2, .out = s->scores, .out_stride = padded};
      pair_product(&scores, rows, (keys + 15) / 16 * 16);
      soften(s->scores, rows, keys, padded, scale, s->weights, shares);
      const PairProduct mixture = {.a = s->weights, .a_stride = padded / 2, .b = s->values, .b_stride = size,
                                   .size = (keys + 1) / 2, .out = mixed, .out_stride = hidden,
                                   .by_row = shares, .by_column = s->steps};
      pair_product(&mixture, rows, size);
    }
  }
}

/* ---- the layer ----------------------------------------------------------------------------------------------- */

/* The norm of x + skip, where x is replaced by their sum. */
static void add_norm(const float *norm, float epsilon, float *x, const float *skips, const size_t *skip_places,
                     size_t rows, size_t size, float *outs, const size_t *out_places) {
  for (size_t row = 0; row < rows; row++, x += size) {
    const float *skip = skips + placed(skip_places, row) * size;
    float *out = outs + placed(out_places, row) * size;
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < size; i += 16) {
      const __m512 value = _mm512_add_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(skip + i));
      _mm512_storeu_ps(x + i, value);
      sum = _mm512_add_ps(sum, value);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)size);
    __m512 squares = _mm512_setzero_ps();
    for (size_t i = 0; i < size; i += 16) {
      const __m512 value = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
      squares = _mm512_fmadd_ps(value, value, squares);
    }
    const __m512 by = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + epsilon));
    for (size_t i = 0; i < size; i += 16) {
      const __m512 value = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), by);
      _mm512_storeu_ps(out + i, _mm512_fmadd_ps(value, _mm512_loadu_ps(norm + i), _mm512_loadu_ps(norm + size + i)));
    }
  }
}

/* Memory of a call, for one block. */
typedef struct {
  size_t *places;   /* (block,) */
  uint8_t *rounded; /* (block, hidden) */
  float *largest;   /* (block,) */
  float *query, *key, *value;
  AttentionScratch attention;
  float *mixed, *outer;         /* (inner block, hidden) */
  float *inner;                 /* (inner block, inner) */
  uint8_t *inner_rounded;       /* (inner block, inner) */
} Scratch;

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free); }

/* A thread's memory, kept for its next call and freed as it ends; its first word is its size. */
static char *reserve(size_t bytes) {
  pthread_once(&scratch_once, make_scratch_key);
  size_t *held = pthread_getspecific(scratch_key);
  if (held == NULL || *held < bytes) {
    free(held);
    pthread_setspecific(scratch_key, NULL);
    held = NULL;
    if (posix_memalign((void **)&held, 64, bytes + 64)) return NULL;
    *held = bytes;
    pthread_setspecific(scratch_key, held);
  }
  return (char *)held + 64;
}

static size_t up64(size_t bytes) { return (bytes + 63) / 64 * 64; }

static int lay_out(const Layer *layer, size_t block, size_t queries, size_t length, Scratch *s) {
  const size_t hidden = layer->hidden, inner = layer->inner, padded = pad_keys(length);
  const size_t size = hidden / layer->heads;
  struct {
    void **place;
    size_t bytes;
  } parts[] = {
      {(void **)&s->places, (block > queries ? block : queries) * sizeof(size_t)},
      {(void **)&s->rounded, block * hidden},
      {(void **)&s->largest, block * sizeof(float)},
      {(void **)&s->query, queries * hidden * sizeof(float)},
      {(void **)&s->key, block * hidden * sizeof(float)},
      {(void **)&s->value, block * hidden * sizeof(float)},
      {(void **)&s->attention.columns, size / 2 * padded * sizeof(int32_t)},
      {(void **)&s->attention.values, size * padded / 2 * sizeof(int32_t)},
      {(void **)&s->attention.queries, TILE_ROWS * ((size + 31) / 32 * 16) * sizeof(int32_t)},
      {(void **)&s->attention.weights, TILE_ROWS * padded / 2 * sizeof(int32_t)},
      {(void **)&s->attention.scores, TILE_ROWS * padded * sizeof(float)},
      {(void **)&s->attention.steps, size * sizeof(float)},
      {(void **)&s->mixed, INNER_ROWS * hidden * sizeof(float)},
      {(void **)&s->outer, INNER_ROWS * hidden * sizeof(float)},
      {(void **)&s->inner, layer->down.by_row ? INNER_ROWS * inner * sizeof(float) : 0},
      {(void **)&s->inner_rounded, INNER_ROWS * inner},
  };
  size_t total = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) total += up64(parts[i].bytes);
  char *memory = reserve(total);
  if (memory == NULL) return 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    *parts[i].place = memory;
    memory += up64(parts[i].bytes);
  }
  return 1;
}

#ifdef CROSSRANK_PROFILE /* where the cycles go, for benchmarks/roofline.py; one thread at a time */
enum { ROUNDING, PRODUCTS, GELU_PRODUCTS, ATTENTION, NORMS, NUM_PARTS };
__attribute__((visibility("default"))) uint64_t crossrank_cycles[NUM_PARTS];
#define TIMED(part, ...)                                  \
  do {                                                    \
    const uint64_t begun = __builtin_ia32_rdtsc();        \
    __VA_ARGS__;                                          \
    crossrank_cycles[part] += __builtin_ia32_rdtsc() - begun; \
  } while (0)
#define round_rows(...) TIMED(ROUNDING, round_rows(__VA_ARGS__))
#define multiply_plain(...) TIMED(PRODUCTS, multiply_plain(__VA_ARGS__))
#define multiply_gelu(...) TIMED(GELU_PRODUCTS, multiply_gelu(__VA_ARGS__))
#define multiply_gelu_rounded(...) TIMED(GELU_PRODUCTS, multiply_gelu_rounded(__VA_ARGS__))
#define add_norm(...) TIMED(NORMS, add_norm(__VA_ARGS__))
#define attention(...) TIMED(ATTENTION, attention(__VA_ARGS__))
#endif

/* After attention: (rows, hidden) mixtures of values, and the layer's inputs at their places, to its outputs. */
static void feed_forward(const Layer *layer, const Scratch *s, const float *mixtures, size_t rows, const float *inputs,
                         float *out, const size_t *out_places) {
  const size_t hidden = layer->hidden, parts = (rows + INNER_ROWS - 1) / INNER_ROWS;
  const size_t most = ((rows + parts - 1) / parts + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; /* of a part: all alike */
  const float epsilon = *floats(layer, layer->epsilon);
  for (size_t start = 0; start < rows; start += most) {
    const size_t count = rows - start < most ? rows - start : most;
    float *outs = out_places ? out : out + start * hidden;
    Product p = {.x = s->rounded, .largest = s->largest, .out = s->outer};
    round_rows(layer, &layer->mix, mixtures + start * hidden, NULL, count, s->rounded, s->largest);
    multiply_plain(layer, &layer->mix, &p, count);
    add_norm(floats(layer, layer->attention_norm), epsilon, s->outer, inputs, s->places + start, count, hidden, s->mixed,
             NULL);
    round_rows(layer, &layer->up, s->mixed, NULL, count, s->rounded, s->largest);
    p.out = s->inner, p.rounded = s->inner_rounded, p.next = &layer->down;
    if (layer->down.by_row) {
      multiply_gelu(layer, &layer->up, &p, count);
      round_rows(layer, &layer->down, s->inner, NULL, count, s->inner_rounded, s->largest);
    } else {
      multiply_gelu_rounded(layer, &layer->up, &p, count);
    }
    p.x = s->inner_rounded, p.out = s->outer;
    multiply_plain(layer, &layer->down, &p, count);
    add_norm(floats(layer, layer->output_norm), epsilon, s->outer, s->mixed, NULL, count, hidden, outs,
             out_places ? out_places + start : NULL);
  }
}

/* The tokens of a text; a mask of anything but ones and zeros does not lead out of it. */
static size_t count_tokens(const int32_t *lengths, size_t text, size_t length) {
  if (lengths == NULL || lengths[text] > (int64_t)length) return length;
  return lengths[text] < 1 ? 1 : (size_t)lengths[text];
}

/* Run the layer.

   x: (batch * length, hidden). lengths: tokens of each text that are no padding, or NULL where there is none.
   out: like x, with zeros for padding, or (batch, hidden) where the layer computes the first token of each text only.
   Padding is not computed. Gives 0 if there is no memory. */
static int run_layer(const Layer *layer, const float *x, size_t batch, size_t length, const int32_t *lengths,
                     float *out) {
  const size_t hidden = layer->hidden, first_only = layer->first_only != 0;
  const size_t most = length > BLOCK_ROWS ? length : BLOCK_ROWS; /* tokens of a block */
  const size_t queries = first_only ? batch : most;
  Scratch s;
  if (!lay_out(layer, most, queries, length, &s)) return 0;
  for (size_t text = 0, next; text < batch; text = next) {
    size_t rows = 0;
    for (next = text; next < batch; next++) {
      const size_t tokens = count_tokens(lengths, next, length);
      if (next > text && rows + tokens > most) break;
      for (size_t i = 0; i < tokens; i++) s.places[rows++] = next * length + i;
      if (!first_only) memset(out + (next * length + tokens) * hidden, 0, (length - tokens) * hidden * sizeof(float));
    }
    float *query = s.query + (first_only ? text * hidden : 0);
    Product p = {.x = s.rounded, .largest = s.largest, .out = s.key};
    round_rows(layer, &layer->key, x, s.places, rows, s.rounded, s.largest);
    multiply_plain(layer, &layer->key, &p, rows);
    p.out = s.value;
    if (!layer->value_alike) round_rows(layer, &layer->value, x, s.places, rows, s.rounded, s.largest);
    multiply_plain(layer, &layer->value, &p, rows);
    p.out = query;
    if (first_only) {
      for (size_t i = text; i < next; i++) s.places[i - text] = i * length;
      round_rows(layer, &layer->query, x, s.places, next - text, s.rounded, s.largest);
    } else if (!layer->query_alike) {
      round_rows(layer, &layer->query, x, s.places, rows, s.rounded, s.largest);
    }
    multiply_plain(layer, &layer->query, &p, first_only ? next - text : rows);
    for (size_t i = text, at = 0; i < next; i++) {
      const size_t tokens = count_tokens(lengths, i, length), count = first_only ? 1 : tokens;
      attention(layer, query, count, s.key + at, s.value + at, tokens, &s.attention);
      query += count * hidden;
      at += tokens * hidden;
    }
    if (!first_only) feed_forward(layer, &s, s.query, rows, x, out, s.places);
  }
  if (first_only) {
    for (size_t i = 0; i < batch; i++) s.places[i] = i * length;
    feed_forward(layer, &s, s.query, batch, x, out, NULL);
  }
  return 1;
}

/* ---- ONNX Runtime -------------------------------------------------------------------------------------------- */

/* Its C interface is a table of functions that only ever grows at its end; these are of its first version. */
enum {
  CREATE_STATUS = 0,
  CREATE_DOMAIN = 26,
  ADD_OPERATOR = 27,
  ADD_DOMAIN = 28,
  TENSOR_DATA = 51,
  DIMENSIONS_COUNT = 61,
  DIMENSIONS = 62,
  TENSOR_SHAPE = 65,
  GET_INPUT = 90,
  GET_OUTPUT = 91,
  RELEASE_SHAPE = 99
};

typedef void (*Function)(void);
typedef struct {
  const Function *(*table)(uint32_t version);
  const char *(*version)(void);
} Base;
typedef void *Status; /* NULL is success */

enum { API_VERSION = 16, ELEMENT_FLOAT = 1, ELEMENT_UINT8 = 2, ELEMENT_INT32 = 6, ELEMENT_INT64 = 7 };

typedef struct Operator {
  uint32_t version;
  void *(*create)(const struct Operator *, const Function *api, const void *info);
  const char *(*name)(const struct Operator *);
  const char *(*provider)(const struct Operator *);
  int (*input_type)(const struct Operator *, size_t);
  size_t (*num_inputs)(const struct Operator *);
  int (*output_type)(const struct Operator *, size_t);
  size_t (*num_outputs)(const struct Operator *);
  void (*compute)(void *kernel, void *context);
  void (*destroy)(void *kernel);
  int (*input_kind)(const struct Operator *, size_t);
  int (*output_kind)(const struct Operator *, size_t);
  int (*input_memory)(const struct Operator *, size_t);
  int (*least_inputs)(const struct Operator *);
  int (*inputs_alike)(const struct Operator *);
  int (*least_outputs)(const struct Operator *);
  int (*outputs_alike)(const struct Operator *);
  Status (*create_2)(const struct Operator *, const Function *api, const void *info, void **kernel);
  Status (*compute_2)(void *kernel, void *context);
  void *later[8]; /* of later versions: none */
} Operator;

#define CALL(api, slot, ...) ((Status(*)(__VA_ARGS__))(api)[slot])

static Status failed(const Function *api, const char *message) {
  return CALL(api, CREATE_STATUS, int, const char *)(1, message);
}

static const void *input_data(const Function *api, void *context, size_t index) {
  void *value = NULL, *data = NULL;
  if (CALL(api, GET_INPUT, void *, size_t, void **)(context, index, &value) || value == NULL) return NULL;
  if (CALL(api, TENSOR_DATA, void *, void **)(value, &data)) return NULL;
  return data;
}

static Status compute(void *kernel, void *context) {
  const Function *api = kernel;
  const float *x = input_data(api, context, 0);
  const int64_t *shape = input_data(api, context, 1); /* batch, length, hidden */
  const Layer *layer = input_data(api, context, 2);
  const int32_t *lengths = input_data(api, context, 3);
  if (x == NULL || shape == NULL || layer == NULL) return failed(api, "BertLayer lacks an input");
  if (shape[0] < 1 || shape[1] < 1) return failed(api, "BertLayer wants texts of one token or more");
  const int64_t rows = layer->first_only ? shape[0] : shape[0] * shape[1];
  const int64_t sizes[2] = {rows, layer->hidden};
  void *value = NULL, *out = NULL;
  Status status = CALL(api, GET_OUTPUT, void *, size_t, const int64_t *, size_t, void **)(context, 0, sizes, 2, &value);
  if (status == NULL) status = CALL(api, TENSOR_DATA, void *, void **)(value, &out);
  if (status == NULL && !run_layer(layer, x, (size_t)shape[0], (size_t)shape[1], lengths, out))
    status = failed(api, "BertLayer: out of memory");
  return status;
}

static Status create(const Operator *op, const Function *api, const void *info, void **kernel) {
  (void)op, (void)info;
  *kernel = (void *)api; /* nothing to keep but the table */
  return NULL;
}

static const char *name(const Operator *op) { return (void)op, "BertLayer"; }
static const char *provider(const Operator *op) { return (void)op, NULL; }
static int input_type(const Operator *op, size_t index) {
  static const int types[] = {ELEMENT_FLOAT, ELEMENT_INT64, ELEMENT_UINT8, ELEMENT_INT32};
  return (void)op, types[index];
}
static size_t num_inputs(const Operator *op) { return (void)op, 4; }
static int output_type(const Operator *op, size_t index) { return (void)op, (void)index, ELEMENT_FLOAT; }
static size_t num_outputs(const Operator *op) { return (void)op, 1; }
static void destroy(void *kernel) { (void)kernel; }
static int input_kind(const Operator *op, size_t index) { return (void)op, index == 3; } /* 1: may be left out */
static int zero_kind(const Operator *op, size_t index) { return (void)op, (void)index, 0; }
static int zero(const Operator *op) { return (void)op, 0; }
static int one(const Operator *op) { return (void)op, 1; }

static const Operator bert_layer = {
    .version = API_VERSION,
    .name = name,
    .provider = provider,
    .input_type = input_type,
    .num_inputs = num_inputs,
    .output_type = output_type,
    .num_outputs = num_outputs,
    .destroy = destroy,
    .input_kind = input_kind,
    .output_kind = zero_kind,
    .input_memory = zero_kind,
    .least_inputs = one,
    .inputs_alike = zero,
    .least_outputs = one,
    .outputs_alike = zero,
    .create_2 = create,
    .compute_2 = compute,
};

/* ONNX Runtime calls this when the library is registered for a session. */
__attribute__((visibility("default"))) Status RegisterCustomOps(void *options, const Base *base) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static void *domain; /* of the process: sessions keep pointers to it */
  const Function *api = base->table(API_VERSION);
  Status status = NULL;
  if (api == NULL) return NULL; /* older than the interface: then the session will miss the operator */
  pthread_mutex_lock(&lock);
  if (domain == NULL) {
    status = CALL(api, CREATE_DOMAIN, const char *, void **)("crossrank", &domain);
    if (status == NULL) status = CALL(api, ADD_OPERATOR, void *, const Operator *)(domain, &bert_layer);
  }
  pthread_mutex_unlock(&lock);
  return status ? status : CALL(api, ADD_DOMAIN, void *, void *)(options, domain);
}
