/* The walk of upscale/sources/recurrent/native.py on a CPU: rows of one random LSTM or GRU.

   Every sum is made in the order of its inner index, one fused multiply-add a term, and all else is IEEE arithmetic in
   a fixed order: so a row's bits depend neither on the rows and lanes that share a call, nor on threads, nor on how
   long the machine's vectors are. REAL is float, or double for comparisons with an oracle.

   A panel is four vectors of UNITS columns: the four gates of UNITS hidden units, or 4 UNITS tokens. Matrices are
   packed as (panels, inner index, 4, UNITS), so that a panel is read straight through and stays in the nearest cache
   while the rows pass, ROWS at a time: as many as have their sums in registers. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && !defined(DOUBLE)
enum { UNITS = 16, ROWS = 6 };
#else
enum { UNITS = 8, ROWS = 3 };
#endif

#ifdef DOUBLE
typedef double REAL;
typedef int64_t WHOLE;
#define FUSED fma
#else
typedef float REAL;
typedef int32_t WHOLE;
#define FUSED fmaf
#endif

typedef REAL V __attribute__((vector_size(UNITS * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef WHOLE I __attribute__((vector_size(UNITS * sizeof(REAL))));

typedef struct {
    int64_t is_lstm, is_greedy, hidden, hidden_panels, token_panels, length, seed_tokens;
    const REAL *x_table, *z_table; /* (tokens, hidden_panels, 4, UNITS) */
    const REAL *recurrent;         /* (hidden_panels, hidden, 4, UNITS) */
    const REAL *head, *head_bias;  /* (token_panels, hidden, 4, UNITS), (token_panels, 4, UNITS): -inf for no token */
} Program;

int64_t upscale_recurrent_units(void) { return UNITS; }

static inline V all(REAL value) { return value - (V){0}; }

static inline V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__) && !defined(DOUBLE)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && !defined(DOUBLE)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int place = 0; place < UNITS; place++) c[place] = FUSED(a[place], b[place], c[place]);
    return c;
#endif
}

static inline V smaller(V a, V b) {
    I less = a < b;
    return (V)(((I)a & less) | ((I)b & ~less));
}

static inline V larger(V a, V b) {
    I less = a < b;
    return (V)(((I)b & less) | ((I)a & ~less));
}

/* e^x for x cut to [-87, 88], to about an ulp: 2^n times a polynomial in x - n ln 2 (its Taylor series, |r| < 0.35). */
static inline V exponential(V x) {
#ifdef DOUBLE
    for (int place = 0; place < UNITS; place++) x[place] = exp(x[place]);
    return x;
#else
    const V shift = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer, in the low bits of the sum */
    x = smaller(larger(x, all(-87.0f)), all(88.0f));
    V shifted = multiply_add(x, all(1.44269504f), shift), whole = shifted - shift;
    V rest = multiply_add(whole, all(-0.693359375f), x);
    rest = multiply_add(whole, all(2.12194440e-4f), rest);
    V sum = all(1.0f / 5040);
    sum = multiply_add(sum, rest, all(1.0f / 720));
    sum = multiply_add(sum, rest, all(1.0f / 120));
    sum = multiply_add(sum, rest, all(1.0f / 24));
    sum = multiply_add(sum, rest, all(1.0f / 6));
    sum = multiply_add(sum, rest, all(0.5f));
    sum = multiply_add(sum, rest, all(1.0f));
    sum = multiply_add(sum, rest, all(1.0f));
    return (V)((I)sum + ((I)shifted << 23));
#endif
}

static inline V sigmoid(V x) { return 1 / (1 + exponential(-x)); }

static inline V hyperbolic_tangent(V x) { return multiply_add(all(2), sigmoid(x + x), all(-1)); }

/* sums += left @ panel for a number of rows that the compiler knows; `left` (rows, inner) with a stride. */
static inline __attribute__((always_inline)) void product(V (*sums)[4], const int rows, const REAL *left,
                                                          int64_t stride, const REAL *panel, int64_t inner) {
    V total[ROWS][4];
#pragma GCC unroll 6
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) total[row][part] = sums[row][part];
    for (int64_t k = 0; k < inner; k++) {
        const V *weights = (const V *)(panel + k * 4 * UNITS);
#pragma GCC unroll 6
        for (int row = 0; row < rows; row++) {
            V factor = all(left[row * stride + k]);
#pragma GCC unroll 4
            for (int part = 0; part < 4; part++)
                total[row][part] = multiply_add(factor, weights[part], total[row][part]);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) sums[row][part] = total[row][part];
}

static void add_product(V (*sums)[4], int64_t rows, const REAL *left, int64_t stride, const REAL *panel,
                        int64_t inner) {
    switch (rows) {
    case 1: product(sums, 1, left, stride, panel, inner); break;
    case 2: product(sums, 2, left, stride, panel, inner); break;
#if defined(__AVX512F__) && !defined(DOUBLE)
    case 3: product(sums, 3, left, stride, panel, inner); break;
    case 4: product(sums, 4, left, stride, panel, inner); break;
    case 5: product(sums, 5, left, stride, panel, inner); break;
#endif
    default: product(sums, ROWS, left, stride, panel, inner);
    }
}

/* (tokens, panels, 4, UNITS) = embedding (tokens, inner) @ weights (panels, inner, 4, UNITS) + bias (panels, 4, UNITS) */
void upscale_recurrent_table(int64_t tokens, int64_t inner, int64_t panels, const REAL *embedding, const REAL *weights,
                             const REAL *bias, REAL *table) {
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t token = 0; token < tokens; token += ROWS) {
            int64_t rows = tokens - token < ROWS ? tokens - token : ROWS;
            V sums[ROWS][4];
            for (int64_t row = 0; row < rows; row++) memcpy(sums[row], bias + panel * 4 * UNITS, sizeof *sums);
            add_product(sums, rows, embedding + token * inner, inner, weights + panel * inner * 4 * UNITS, inner);
            for (int64_t row = 0; row < rows; row++)
                memcpy(table + ((token + row) * panels + panel) * 4 * UNITS, sums[row], sizeof *sums);
        }
}

/* The gates of a row's UNITS hidden units, in PyTorch's order; a GRU's last two are its candidate's parts, of the
   recurrent product and of the input. */
static inline void cell(int64_t is_lstm, const V gates[4], const REAL *before, REAL *memory, REAL *after) {
    if (is_lstm) {
        V kept = sigmoid(gates[1]) * *(const V *)memory;
        kept = multiply_add(sigmoid(gates[0]), hyperbolic_tangent(gates[2]), kept);
        *(V *)memory = kept;
        *(V *)after = sigmoid(gates[3]) * hyperbolic_tangent(kept);
    } else {
        V candidate = hyperbolic_tangent(multiply_add(sigmoid(gates[0]), gates[2], gates[3]));
        *(V *)after = multiply_add(sigmoid(gates[1]), *(const V *)before - candidate, candidate);
    }
}

/* The first token at which the sum of the shares reaches height times all of it. Shares below e^-87 count as nothing;
   near-greedy, that is most of them. */
static int64_t drawn(REAL *logits, int64_t count, int is_greedy, double height) {
    V most = *(V *)logits;
    for (int64_t token = UNITS; token < count; token += UNITS) most = larger(most, *(V *)(logits + token));
    REAL largest = most[0];
    for (int place = 1; place < UNITS; place++)
        if (most[place] > largest) largest = most[place];
    if (is_greedy) {
        int64_t token = 0;
        while (logits[token] != largest) token++;
        return token;
    }
    double total = 0;
    int64_t last = 0;
    for (int64_t token = 0; token < count; token += UNITS) {
        V rest = *(V *)(logits + token) - all(largest);
        I counts = rest >= all(-87);
        WHOLE any = 0;
        for (int place = 0; place < UNITS; place++) any |= counts[place];
        if (!any) {
            *(V *)(logits + token) = all(0);
            continue;
        }
        *(V *)(logits + token) = (V)((I)exponential(rest) & counts);
        for (int place = 0; place < UNITS; place++) total += logits[token + place];
    }
    double wanted = height * total, sum = 0;
    for (int64_t token = 0; token < count; token++) {
        if (logits[token] == 0) continue;
        last = token;
        sum += logits[token];
        if (sum >= wanted) break;
    }
    return last;
}

/* Rows (rows, length) after the seeds they hold; conditions (rows, length); heights (rows, length - seed_tokens).
   Returns whether there was memory. */
int upscale_recurrent_write(const Program *program, int64_t rows, const int16_t *conditions, const float *heights,
                            int16_t *tokens) {
    int64_t width = program->hidden_panels * UNITS, length = program->length, drawn_tokens = length - program->seed_tokens;
    int64_t count = program->token_panels * 4 * UNITS, table_row = program->hidden_panels * 4 * UNITS;
    REAL *states = calloc((size_t)(3 * rows * width + ROWS * count), sizeof(REAL));
    if (!states) return 0;
    REAL *before = states, *after = states + rows * width, *memory = after + rows * width;
    REAL *logits = memory + rows * width;
    for (int64_t time = 0; time + 1 < length; time++) {
        for (int64_t panel = 0; panel < program->hidden_panels; panel++) {
            const REAL *weights = program->recurrent + panel * program->hidden * 4 * UNITS;
            for (int64_t first = 0; first < rows; first += ROWS) {
                int64_t some = rows - first < ROWS ? rows - first : ROWS;
                V sums[ROWS][4];
                for (int64_t row = 0; row < some; row++) {
                    int64_t place = (first + row) * length + time;
                    const V *x = (const V *)(program->x_table + tokens[place] * table_row + panel * 4 * UNITS);
                    const V *z = (const V *)(program->z_table + conditions[place] * table_row + panel * 4 * UNITS);
                    for (int part = 0; part < 4; part++) sums[row][part] = x[part] + z[part];
                }
                add_product(sums, some, before + first * width, width, weights, program->hidden);
                for (int64_t row = 0; row < some; row++) {
                    int64_t place = (first + row) * width + panel * UNITS;
                    cell(program->is_lstm, sums[row], before + place, memory + place, after + place);
                }
            }
        }
        if (time + 1 >= program->seed_tokens)
            for (int64_t first = 0; first < rows; first += ROWS) {
                int64_t some = rows - first < ROWS ? rows - first : ROWS;
                for (int64_t panel = 0; panel < program->token_panels; panel++) {
                    V sums[ROWS][4];
                    for (int64_t row = 0; row < some; row++)
                        memcpy(sums[row], program->head_bias + panel * 4 * UNITS, sizeof *sums);
                    add_product(sums, some, after + first * width, width,
                                program->head + panel * program->hidden * 4 * UNITS, program->hidden);
                    for (int64_t row = 0; row < some; row++)
                        memcpy(logits + row * count + panel * 4 * UNITS, sums[row], sizeof *sums);
                }
                for (int64_t row = first; row < first + some; row++) {
                    double height = program->is_greedy ? 1 : heights[row * drawn_tokens + time + 1 - program->seed_tokens];
                    tokens[row * length + time + 1] =
                        (int16_t)drawn(logits + (row - first) * count, count, program->is_greedy, height);
                }
            }
        REAL *swapped = before;
        before = after, after = swapped;
    }
    free(states);
    return 1;
}
