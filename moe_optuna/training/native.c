/* A model's step on a CPU: its operations, each in one pass, forward and backward written out; at the end the model.

   float32, row-major, contiguous. Matrix products are BLAS', whose `sgemm` the loader hands over (`use_gemm`); what
   lies between them is here. The same in torch's operations: `model.py`, to which tests hold the losses and every
   gradient.

   Shapes: B sequences, S context, T = B S tokens, D model width, H query heads, G key and value heads, C head features,
   E experts, K experts a token, R = T K rows sorted by expert, F hidden width, V vocabulary. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PARALLEL _Pragma("omp parallel num_threads(threads) if (threads > 1)")
#define FOR _Pragma("omp for schedule(static)")
#define FOR_UNEQUAL _Pragma("omp for schedule(dynamic, 1)")
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(s) _Pragma(SIMD_TEXT(omp simd reduction(+ : s)))
#define SIMD_MAX(s) _Pragma(SIMD_TEXT(omp simd reduction(max : s)))
#define SIMD_TEXT(text) #text

/* Queries, and rows of an expert, that are worked on while they lie in the cache; numbers of a vector. */
enum { BLOCK = 64, ROWS = 256, LANES = 16 };

typedef void (*Gemm)(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                     const int *, const float *, const int *, const float *, float *, const int *);
static Gemm gemm;

void use_gemm(void *function) { gemm = (Gemm)function; }

/* c (m, n) = alpha a b + beta c, where 'T' says that a lies as (k, m), or b as (n, k). */
static void product(char ta, char tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                    int ldb, float beta, float *c, int ldc) {
    gemm(&tb, &ta, &n, &m, &k, &alpha, b, &ldb, a, &lda, &beta, c, &ldc);
}

/* The same, a part of the rows of c by each thread. */
static void product_shared(int threads, char ta, char tb, int m, int n, int k, const float *a, int lda, const float *b,
                           int ldb, float beta, float *c, int ldc) {
    if (threads == 1) { /* which need not be called a team */
        product(ta, tb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    int chunk = ((m + threads - 1) / threads + LANES - 1) / LANES * LANES;
    PARALLEL FOR for (int first = 0; first < m; first += chunk)
        product(ta, tb, m - first < chunk ? m - first : chunk, n, k, 1, a + (ta == 'T' ? first : (size_t)first * lda),
                lda, b, ldb, beta, c + (size_t)first * ldc, ldc);
}

static float *numbers(size_t n) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, (n ? n : 1) * sizeof(float)) ? NULL : memory;
}

/* exp to 2 ulp (Cephes' polynomial); unlike the library's it becomes vector instructions. NaN stays NaN, and what is
   almost subnormal, with which arithmetic is slow, is 0. */
static inline float exponential(float given) {
    float x = given < -87.0f ? -87.0f : given;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504088896341f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return given < -80.0f ? 0.0f : p * power.f;
}

static inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* Sums over threads, in their order: the same bits every time. */
static void add_parts(int parts, int n, const float *part, float *sum) {
    for (int i = 0; i < n; i++) {
        float s = 0;
        for (int p = 0; p < parts; p++) s += part[(size_t)p * n + i];
        sum[i] = s;
    }
}

/* ---- norm: y = x / sqrt(mean(x^2)) * gain */

static void rms_forward(int T, int D, const float *x, const float *gain, float *y, float *inverse, int threads) {
    PARALLEL FOR for (int t = 0; t < T; t++) {
        const float *row = x + (size_t)t * D;
        float *out = y + (size_t)t * D, s = 0;
        SIMD_SUM(s) for (int i = 0; i < D; i++) s += row[i] * row[i];
        float r = inverse[t] = 1.0f / sqrtf(s / D);
        SIMD for (int i = 0; i < D; i++) out[i] = row[i] * r * gain[i];
    }
}

/* dx = residual + the gradient through the norm. */
static void rms_backward(int T, int D, const float *x, const float *gain, const float *inverse, const float *dy,
                         const float *residual, float *dx, float *dgain, int threads) {
    float *part = numbers((size_t)threads * D);
    memset(part, 0, (size_t)threads * D * sizeof(float));
    int chunk = (T + threads - 1) / threads;
    PARALLEL FOR for (int p = 0; p < threads; p++) {
        float *sum = part + (size_t)p * D;
        int last = (p + 1) * chunk < T ? (p + 1) * chunk : T;
        for (int t = p * chunk; t < last; t++) {
            const float *row = x + (size_t)t * D, *up = dy + (size_t)t * D, *rest = residual + (size_t)t * D;
            float *out = dx + (size_t)t * D, r = inverse[t], s = 0;
            SIMD_SUM(s) for (int i = 0; i < D; i++) s += up[i] * gain[i] * row[i];
            float along = s * r * r * r / D;
            SIMD for (int i = 0; i < D; i++) {
                sum[i] += up[i] * row[i] * r;
                out[i] = rest[i] + up[i] * gain[i] * r - row[i] * along;
            }
        }
    }
    add_parts(threads, D, part, dgain);
    free(part);
}

/* ---- attention: queries and keys normed (where there are gains) and turned by their position, softmax, values */

/* One head's features, in place of which `out` may lie: turned by (cos, sin) pairs. */
static void turn(int C, const float *x, const float *pair, float *out) {
    SIMD for (int j = 0; j < C / 2; j++) {
        float a = x[2 * j], b = x[2 * j + 1];
        out[2 * j] = a * pair[2 * j] - b * pair[2 * j + 1];
        out[2 * j + 1] = a * pair[2 * j + 1] + b * pair[2 * j];
    }
}

static void turn_back(int C, const float *x, const float *pair, float *out) {
    SIMD for (int j = 0; j < C / 2; j++) {
        float a = x[2 * j], b = x[2 * j + 1];
        out[2 * j] = a * pair[2 * j] + b * pair[2 * j + 1];
        out[2 * j + 1] = b * pair[2 * j] - a * pair[2 * j + 1];
    }
}

/* Keys in whole vectors: ragged rows would spend their time in the remainders, and in guessing their length. */
static int whole(int n) { return (n + LANES - 1) / LANES * LANES; }

/* scores[r][j] = exp(q k / sqrt(C) - lse) for keys j up to the query first + r, 0 for the later ones of the block;
   without `lse` known it is the softmax, and written. Rows are `ld` apart, a multiple of the lanes. */
static void probabilities(int m, int first, int ld, float *scores, float *lse, int known) {
    int n = whole(first + m);
    for (int r = 0; r < m; r++) {
        float *row = scores + (size_t)r * ld, most = -1e30f, s = 0;
        for (int j = first + r + 1; j < n; j++) row[j] = -1e30f;
        if (known) {
            float shift = lse[r];
            SIMD for (int j = 0; j < n; j++) row[j] = exponential(row[j] - shift);
        } else {
            SIMD_MAX(most) for (int j = 0; j < n; j++) most = row[j] > most ? row[j] : most;
            SIMD_SUM(s) for (int j = 0; j < n; j++) s += row[j] = exponential(row[j] - most);
            lse[r] = most + logf(s);
            float scale = 1.0f / s;
            SIMD for (int j = 0; j < n; j++) row[j] *= scale;
        }
    }
}

/* qkv (T, (H + 2G) C); qk (T, (H + G) C) and inverse (T, H + G) are kept for the backward pass, as is lse (B, H, S). */
static void attention_forward(int B, int S, int H, int G, int C, const float *qkv, const float *query_gain,
                              const float *key_gain, const float *table, float *qk, float *inverse, float *y,
                              float *lse, int threads) {
    int ld = (H + G) * C, ld_qkv = (H + 2 * G) * C, ld_scores = whole(S);
    float scale = 1.0f / sqrtf(C);
    PARALLEL {
        float *scores = numbers((size_t)BLOCK * ld_scores);
        FOR for (int t = 0; t < B * S; t++) for (int h = 0; h < H + G; h++) {
            const float *x = qkv + (size_t)t * ld_qkv + h * C, *gain = h < H ? query_gain : key_gain;
            float *out = qk + (size_t)t * ld + h * C;
            if (gain) {
                float s = 0;
                SIMD_SUM(s) for (int i = 0; i < C; i++) s += x[i] * x[i];
                float r = inverse[(size_t)t * (H + G) + h] = 1.0f / sqrtf(s / C);
                SIMD for (int i = 0; i < C; i++) out[i] = x[i] * r * gain[i];
                x = out;
            }
            turn(C, x, table + (size_t)(t % S) * ld, out);
        }
        FOR for (int unit = 0; unit < B * H; unit++) {
            int b = unit / H, h = unit % H, g = h / (H / G);
            const float *q = qk + (size_t)b * S * ld + h * C, *k = qk + (size_t)b * S * ld + (H + g) * C;
            const float *v = qkv + (size_t)b * S * ld_qkv + (H + G + g) * C;
            for (int first = 0; first < S; first += BLOCK) {
                int m = S - first < BLOCK ? S - first : BLOCK, n = first + m;
                product('N', 'T', m, n, C, scale, q + (size_t)first * ld, ld, k, ld, 0, scores, ld_scores);
                probabilities(m, first, ld_scores, scores, lse + (size_t)unit * S + first, 0);
                product('N', 'N', m, C, n, 1, scores, ld_scores, v, ld_qkv, 0, y + ((size_t)b * S + first) * H * C + h * C,
                        H * C);
            }
        }
        free(scores);
    }
}

static void attention_backward(int B, int S, int H, int G, int C, const float *qkv, const float *query_gain,
                               const float *key_gain, const float *table, const float *qk, const float *inverse,
                               const float *y, float *lse, const float *dy, float *dqkv, float *dquery_gain,
                               float *dkey_gain, int threads) {
    int ld = (H + G) * C, ld_qkv = (H + 2 * G) * C, ld_p = whole(S), T = B * S, chunk = (T + threads - 1) / threads;
    float scale = 1.0f / sqrtf(C), *part = numbers((size_t)threads * 2 * C), *sums = numbers(2 * C);
    memset(part, 0, (size_t)threads * 2 * C * sizeof(float));
    PARALLEL {
        float *p = numbers((size_t)BLOCK * ld_p), *dp = numbers((size_t)BLOCK * ld_p);
        FOR for (int unit = 0; unit < B * G; unit++) {
            int b = unit / G, g = unit % G;
            const float *k = qk + (size_t)b * S * ld + (H + g) * C, *v = qkv + (size_t)b * S * ld_qkv + (H + G + g) * C;
            float *dk = dqkv + (size_t)b * S * ld_qkv + (H + g) * C, *dv = dk + G * C;
            for (int s = 0; s < S; s++) {
                memset(dk + (size_t)s * ld_qkv, 0, C * sizeof(float));
                memset(dv + (size_t)s * ld_qkv, 0, C * sizeof(float));
            }
            for (int h = g * (H / G); h < (g + 1) * (H / G); h++) for (int first = 0; first < S; first += BLOCK) {
                int m = S - first < BLOCK ? S - first : BLOCK, n = first + m;
                size_t row = (size_t)b * S + first;
                const float *q = qk + row * ld + h * C, *up = dy + row * H * C + h * C, *out = y + row * H * C + h * C;
                product('N', 'T', m, n, C, scale, q, ld, k, ld, 0, p, ld_p);
                probabilities(m, first, ld_p, p, lse + ((size_t)b * H + h) * S + first, 1);
                product('N', 'T', m, n, C, 1, up, H * C, v, ld_qkv, 0, dp, ld_p);
                product('T', 'N', n, C, m, 1, p, ld_p, up, H * C, 1, dv, ld_qkv);
                for (int r = 0; r < m; r++) {
                    float along = 0, *pr = p + (size_t)r * ld_p, *dpr = dp + (size_t)r * ld_p;
                    SIMD_SUM(along) for (int i = 0; i < C; i++) along += up[r * H * C + i] * out[r * H * C + i];
                    SIMD for (int j = 0; j < n; j++) dpr[j] = pr[j] * (dpr[j] - along) * scale;
                }
                product('N', 'N', m, C, n, 1, dp, ld_p, k, ld, 0, dqkv + row * ld_qkv + h * C, ld_qkv);
                product('T', 'N', n, C, m, 1, dp, ld_p, q, ld, 1, dk, ld_qkv);
            }
        }
        FOR for (int thread = 0; thread < threads; thread++) {
            int last = (thread + 1) * chunk < T ? (thread + 1) * chunk : T;
            for (int t = thread * chunk; t < last; t++) for (int h = 0; h < H + G; h++) {
                const float *x = qkv + (size_t)t * ld_qkv + h * C, *gain = h < H ? query_gain : key_gain;
                float *dx = dqkv + (size_t)t * ld_qkv + h * C, s = 0;
                turn_back(C, dx, table + (size_t)(t % S) * ld, dx);
                if (!gain) continue;
                float *sum = part + (size_t)thread * 2 * C + (h < H ? 0 : C), r = inverse[(size_t)t * (H + G) + h];
                SIMD_SUM(s) for (int i = 0; i < C; i++) s += dx[i] * gain[i] * x[i];
                float along = s * r * r * r / C;
                SIMD for (int i = 0; i < C; i++) {
                    sum[i] += dx[i] * x[i] * r;
                    dx[i] = dx[i] * gain[i] * r - x[i] * along;
                }
            }
        }
        free(p);
        free(dp);
    }
    if (query_gain) {
        add_parts(threads, 2 * C, part, sums);
        memcpy(dquery_gain, sums, C * sizeof(float));
        memcpy(dkey_gain, sums + C, C * sizeof(float));
    }
    free(part);
    free(sums);
}

/* ---- SwiGLU: silu(gate) * up * weight, of gate and up side by side (n, 2F) */

static void swiglu_row(int F, const float *gate, float weight, float *hidden) {
    SIMD for (int i = 0; i < F; i++) hidden[i] = gate[i] * logistic(gate[i]) * gate[F + i] * weight;
}

/* Gradients of gate and up, of that of hidden, d; returned times up is that of the weight. */
static inline float swiglu_gradient(float gate, float up, float weight, float d, float *dgate, float *dup) {
    float sigmoid = logistic(gate), silu = gate * sigmoid;
    *dgate = d * weight * up * (sigmoid + silu * (1.0f - sigmoid));
    *dup = d * weight * silu;
    return d * silu;
}

/* Eight features, as the narrowest experts have, are half a vector, which the compiler would take one by one. */
static float swiglu_row_backward(int F, const float *gate, float weight, const float *dhidden, float *dgate) {
    enum { HALF = LANES / 2 };
    float dweight = 0, part[HALF];
    if (F == HALF) {
        SIMD for (int i = 0; i < HALF; i++)
            part[i] = swiglu_gradient(gate[i], gate[F + i], weight, dhidden[i], dgate + i, dgate + F + i);
        for (int i = 0; i < HALF; i++) dweight = fmaf(part[i], gate[F + i], dweight);
        return dweight;
    }
    SIMD_SUM(dweight) for (int i = 0; i < F; i++)
        dweight += swiglu_gradient(gate[i], gate[F + i], weight, dhidden[i], dgate + i, dgate + F + i) * gate[F + i];
    return dweight;
}

static void swiglu_forward(int n, int F, const float *gate_up, float *hidden, int threads) {
    PARALLEL FOR for (int r = 0; r < n; r++) swiglu_row(F, gate_up + (size_t)r * 2 * F, 1, hidden + (size_t)r * F);
}

static void swiglu_backward(int n, int F, const float *gate_up, const float *dhidden, float *dgate_up, int threads) {
    PARALLEL FOR for (int r = 0; r < n; r++)
        swiglu_row_backward(F, gate_up + (size_t)r * 2 * F, 1, dhidden + (size_t)r * F, dgate_up + (size_t)r * 2 * F);
}

/* ---- routing: scores, the K best with the bias, weights that add up to 1, losses; and the rows sorted by expert */

/* Tokens go LANES at a time, an expert's scores of them side by side: then sums over experts and the choice of the best
   need no steps across a vector and no branches. The last lanes of a ragged end repeat the last token. */
#define EACH SIMD for (int i = 0; i < LANES; i++)

static void across(int T, int E, int first, const float *rows, float *lanes) {
    for (int i = 0; i < LANES; i++) {
        const float *row = rows + (size_t)(first + i < T ? first + i : T - 1) * E;
        for (int e = 0; e < E; e++) lanes[e * LANES + i] = row[e];
    }
}

static void back(int T, int E, int first, const float *lanes, float *rows) {
    for (int i = 0; i < LANES && first + i < T; i++)
        for (int e = 0; e < E; e++) rows[(size_t)(first + i) * E + e] = lanes[e * LANES + i];
}

/* visit (R): the visit that each row holds; place (T, K): the row of each visit; end (E): row after an expert's last. */
static void route_forward(int T, int E, int K, int B, int softmax, float balance, float z, const float *logits,
                          const float *bias, float *score, int *expert, float *weight, float *sum, float *total,
                          float *lse, float *weigh, float *count, float *loss, int *visit, int *place, int *end,
                          int threads) {
    int S = T / B;
    PARALLEL {
        float *l = numbers((size_t)E * LANES), *s = numbers((size_t)E * LANES);
        float *best = numbers((size_t)K * LANES), *chosen = numbers((size_t)K * LANES);
        int *index = (int *)numbers((size_t)K * LANES);
        FOR for (int first = 0; first < T; first += LANES) {
            float most[LANES], exponents[LANES], all[LANES], of_chosen[LANES];
            across(T, E, first, logits, l);
            EACH most[i] = l[i], exponents[i] = 0, all[i] = 0, of_chosen[i] = 1e-20f;
            if (softmax || z != 0) {
                for (int e = 1; e < E; e++) EACH most[i] = l[e * LANES + i] > most[i] ? l[e * LANES + i] : most[i];
                for (int e = 0; e < E; e++)
                    EACH exponents[i] += s[e * LANES + i] = exponential(l[e * LANES + i] - most[i]);
            }
            for (int e = 0; e < E; e++) {
                if (softmax) EACH s[e * LANES + i] /= exponents[i];
                else EACH s[e * LANES + i] = logistic(l[e * LANES + i]);
                EACH all[i] += s[e * LANES + i];
            }
            for (int k = 0; k < K; k++)
                EACH best[k * LANES + i] = -INFINITY, chosen[k * LANES + i] = 0, index[k * LANES + i] = 0;
            for (int e = 0; e < E; e++) { /* what comes in pushes out what is less, and that the next */
                float value[LANES], plain[LANES], shift = bias[e];
                int which[LANES];
                EACH plain[i] = s[e * LANES + i], value[i] = plain[i] + shift, which[i] = e;
                for (int k = 0; k < K; k++) {
                    float *b = best + k * LANES, *c = chosen + k * LANES;
                    int *n = index + k * LANES;
                    EACH {
                        int more = value[i] > b[i], j = n[i];
                        float v = b[i], p = c[i];
                        b[i] = more ? value[i] : v, value[i] = more ? v : value[i];
                        c[i] = more ? plain[i] : p, plain[i] = more ? p : plain[i];
                        n[i] = more ? which[i] : j, which[i] = more ? j : which[i];
                    }
                }
            }
            for (int k = 0; k < K; k++) EACH of_chosen[i] += chosen[k * LANES + i];
            back(T, E, first, s, score);
            for (int i = 0; i < LANES && first + i < T; i++) {
                int t = first + i;
                lse[t] = softmax || z != 0 ? most[i] + logf(exponents[i]) : 0;
                total[t] = all[i], sum[t] = of_chosen[i];
                for (int k = 0; k < K; k++) {
                    expert[(size_t)t * K + k] = index[k * LANES + i];
                    weight[(size_t)t * K + k] = chosen[k * LANES + i] / of_chosen[i];
                }
            }
        }
        free(l);
        free(s);
        free(best);
        free(chosen);
        free(index);
    }
    memset(weigh, 0, (size_t)B * E * sizeof(float));
    memset(count, 0, E * sizeof(float));
    for (int b = 0; b < B; b++) {
        float *of_sequence = weigh + (size_t)b * E;
        for (int r = b * S * K; r < (b + 1) * S * K; r++) of_sequence[expert[r]] += 1;
        for (int e = 0; e < E; e++) count[e] += of_sequence[e];
    }
    for (int e = 0, row = 0; e < E; e++) {
        end[e] = row; /* first the start, which moves to the end as rows are placed */
        row += (int)count[e];
    }
    for (int r = 0; r < T * K; r++) visit[place[r] = end[expert[r]]++] = r;
    double balancing = 0, squares = 0;
    float scale = balance * E * B / ((float)K * T * T);
    float *share = numbers(E);
    for (int b = 0; b < B; b++) {
        memset(share, 0, E * sizeof(float));
        for (int t = b * S; t < (b + 1) * S; t++) {
            const float *s = score + (size_t)t * E;
            float part = 1.0f / total[t];
            SIMD for (int e = 0; e < E; e++) share[e] += s[e] * part;
            squares += (double)lse[t] * lse[t];
        }
        for (int e = 0; e < E; e++) balancing += (weigh[(size_t)b * E + e] *= scale) * share[e];
    }
    free(share);
    *loss = (float)(balancing + z / T * squares);
}

static void route_backward(int T, int E, int K, int B, int softmax, float z, const float *logits, const float *score,
                           const int *expert, const float *weight, const float *sum, const float *total,
                           const float *lse, const float *weigh, const float *dweight, const float *dloss,
                           float *dlogits, int threads) {
    int S = T / B;
    PARALLEL {
        float *l = numbers((size_t)E * LANES), *s = numbers((size_t)E * LANES), *w = numbers((size_t)E * LANES);
        float *d = numbers((size_t)E * LANES);
        FOR for (int first = 0; first < T; first += LANES) {
            float mean[LANES], over[LANES], each[LANES], slope[LANES], shift[LANES];
            across(T, E, first, logits, l);
            across(T, E, first, score, s);
            for (int i = 0; i < LANES; i++) {
                int t = first + i < T ? first + i : T - 1;
                for (int e = 0; e < E; e++) w[e * LANES + i] = weigh[(size_t)(t / S) * E + e];
                mean[i] = over[i] = 0, each[i] = total[t], shift[i] = lse[t], slope[i] = *dloss * lse[t] * 2 * z / T;
            }
            for (int e = 0; e < E; e++) EACH mean[i] += w[e * LANES + i] * s[e * LANES + i];
            EACH mean[i] /= each[i], each[i] = *dloss / each[i];
            for (int e = 0; e < E; e++) EACH d[e * LANES + i] = (w[e * LANES + i] - mean[i]) * each[i];
            for (int i = 0; i < LANES && first + i < T; i++) {
                size_t v = (size_t)(first + i) * K;
                float along = 0;
                for (int k = 0; k < K; k++) along += dweight[v + k] * weight[v + k];
                for (int k = 0; k < K; k++) d[expert[v + k] * LANES + i] += (dweight[v + k] - along) / sum[first + i];
            }
            for (int e = 0; softmax && e < E; e++) EACH over[i] += d[e * LANES + i] * s[e * LANES + i];
            for (int e = 0; e < E; e++) {
                float *de = d + e * LANES, *se = s + e * LANES, *le = l + e * LANES;
                if (softmax) EACH de[i] = se[i] * (de[i] - over[i]);
                else EACH de[i] *= se[i] * (1.0f - se[i]);
                if (z != 0) EACH de[i] += exponential(le[i] - shift[i]) * slope[i];
            }
            back(T, E, first, d, dlogits);
        }
        free(l);
        free(s);
        free(w);
        free(d);
    }
}

/* ---- experts: gather, gate and up, SwiGLU times the visit's weight, down, and the sum over a token's visits */

/* out[t] = base[t] + the sum of the token's rows; without a base the sum alone. */
static void sum_rows(int T, int K, int D, const float *y, const int *place, const float *base, float *out,
                     int threads) {
    PARALLEL FOR for (int t = 0; t < T; t++) {
        float *o = out + (size_t)t * D;
        const float *first = y + (size_t)place[(size_t)t * K] * D;
        if (base) SIMD for (int i = 0; i < D; i++) o[i] = base[(size_t)t * D + i] + first[i];
        else memcpy(o, first, D * sizeof(float));
        for (int k = 1; k < K; k++) {
            const float *row = y + (size_t)place[(size_t)t * K + k] * D;
            SIMD for (int i = 0; i < D; i++) o[i] += row[i];
        }
    }
}

/* gate_up (R, 2F) is kept for the backward pass; y (R, D) is for what is between; out = base + the experts' output. */
static void experts_forward(int T, int K, int E, int D, int F, const float *x, const float *gate_up_weight,
                            const float *down_weight, const float *weight, const int *visit, const int *place,
                            const int *end, const float *base, float *gate_up, float *y, float *out, int threads) {
    PARALLEL {
        float *rows = numbers((size_t)ROWS * D), *hidden = numbers((size_t)ROWS * F);
        FOR_UNEQUAL for (int e = 0; e < E; e++) {
            const float *w_in = gate_up_weight + (size_t)e * 2 * F * D, *w_out = down_weight + (size_t)e * D * F;
            for (int first = e ? end[e - 1] : 0; first < end[e]; first += ROWS) {
                int n = end[e] - first < ROWS ? end[e] - first : ROWS;
                float *gates = gate_up + (size_t)first * 2 * F;
                for (int r = 0; r < n; r++)
                    memcpy(rows + (size_t)r * D, x + (size_t)(visit[first + r] / K) * D, D * sizeof(float));
                product('N', 'T', n, 2 * F, D, 1, rows, D, w_in, D, 0, gates, 2 * F);
                for (int r = 0; r < n; r++)
                    swiglu_row(F, gates + (size_t)r * 2 * F, weight[visit[first + r]], hidden + (size_t)r * F);
                product('N', 'T', n, D, F, 1, hidden, F, w_out, F, 0, y + (size_t)first * D, D);
            }
        }
        free(rows);
        free(hidden);
    }
    sum_rows(T, K, D, y, place, base, out, threads);
}

static void experts_backward(int T, int K, int E, int D, int F, const float *x, const float *gate_up_weight,
                             const float *down_weight, const float *weight, const int *visit, const int *place,
                             const int *end, const float *gate_up, const float *dy, float *dx_rows, float *dx,
                             float *dgate_up_weight, float *ddown_weight, float *dweight, int threads) {
    PARALLEL {
        float *rows = numbers((size_t)ROWS * D), *up = numbers((size_t)ROWS * D), *hidden = numbers((size_t)ROWS * F);
        float *dhidden = numbers((size_t)ROWS * F), *dgates = numbers((size_t)ROWS * 2 * F);
        FOR_UNEQUAL for (int e = 0; e < E; e++) {
            const float *w_in = gate_up_weight + (size_t)e * 2 * F * D, *w_out = down_weight + (size_t)e * D * F;
            float *dw_in = dgate_up_weight + (size_t)e * 2 * F * D, *dw_out = ddown_weight + (size_t)e * D * F;
            int begin = e ? end[e - 1] : 0;
            if (begin == end[e]) {
                memset(dw_in, 0, (size_t)2 * F * D * sizeof(float));
                memset(dw_out, 0, (size_t)D * F * sizeof(float));
            }
            for (int first = begin; first < end[e]; first += ROWS) {
                int n = end[e] - first < ROWS ? end[e] - first : ROWS;
                float more = first > begin;
                const float *gates = gate_up + (size_t)first * 2 * F;
                for (int r = 0; r < n; r++) {
                    size_t token = visit[first + r] / K;
                    memcpy(rows + (size_t)r * D, x + token * D, D * sizeof(float));
                    memcpy(up + (size_t)r * D, dy + token * D, D * sizeof(float));
                    swiglu_row(F, gates + (size_t)r * 2 * F, weight[visit[first + r]], hidden + (size_t)r * F);
                }
                product('T', 'N', D, F, n, 1, up, D, hidden, F, more, dw_out, F);
                product('N', 'N', n, F, D, 1, up, D, w_out, F, 0, dhidden, F);
                for (int r = 0; r < n; r++) {
                    int v = visit[first + r];
                    dweight[v] = swiglu_row_backward(F, gates + (size_t)r * 2 * F, weight[v], dhidden + (size_t)r * F,
                                                     dgates + (size_t)r * 2 * F);
                }
                product('T', 'N', 2 * F, D, n, 1, dgates, 2 * F, rows, D, more, dw_in, D);
                product('N', 'N', n, D, 2 * F, 1, dgates, 2 * F, w_in, D, 0, dx_rows + (size_t)first * D, D);
            }
        }
        free(rows);
        free(up);
        free(hidden);
        free(dhidden);
        free(dgates);
    }
    sum_rows(T, K, D, dx_rows, place, NULL, dx, threads);
}

/* ---- cross-entropy: mean over tokens, in nats */

static void entropy_forward(int T, int V, const float *logits, const int64_t *target, float *lse, float *loss,
                            int threads) {
    PARALLEL FOR for (int t = 0; t < T; t++) {
        const float *l = logits + (size_t)t * V;
        float most = l[0], s = 0;
        SIMD_MAX(most) for (int v = 1; v < V; v++) most = l[v] > most ? l[v] : most;
        SIMD_SUM(s) for (int v = 0; v < V; v++) s += exponential(l[v] - most);
        lse[t] = most + logf(s);
    }
    double sum = 0;
    for (int t = 0; t < T; t++) sum += lse[t] - logits[(size_t)t * V + target[t]];
    *loss = (float)(sum / T);
}

static void entropy_backward(int T, int V, const float *logits, const int64_t *target, const float *lse,
                             const float *dloss, float *dlogits, int threads) {
    float scale = *dloss / T;
    PARALLEL FOR for (int t = 0; t < T; t++) {
        const float *l = logits + (size_t)t * V;
        float *d = dlogits + (size_t)t * V, shift = lse[t];
        SIMD for (int v = 0; v < V; v++) d[v] = exponential(l[v] - shift) * scale;
        d[target[t]] -= scale;
    }
}

/* ---- the model */

/* Layers from `dense_layers` on have experts; hidden widths: of a dense block, of an expert, of the shared ones. */
typedef struct {
    int B, S, D, V, H, G, C, layers, dense_layers, dense_hidden, E, K, expert_hidden, shared_hidden, softmax, threads;
    float balance, z;
} Shape;

/* The parameters of a layer, or their gradients; NULL is what it does not have. A dense block's `gate_up` and `down`
   are its own, a MoE block's those of all experts, to whose `load` (E) the tokens that each was given are added. */
typedef struct {
    float *attention_gain, *qkv, *query_gain, *key_gain, *output, *block_gain, *gate_up, *down;
    float *router, *shared_gate_up, *shared_down, *bias, *load;
} Layer;

typedef struct {
    float *embedding, *gain, *head;
    Layer layer[];
} Model;

/* What a layer keeps for the backward pass. The head is one more: input, norm, logits and their logarithmic sums. */
typedef struct {
    float *x, *inverse, *normed, *qkv, *qk, *head_inverse, *heads, *lse;       /* attention */
    float *middle, *block_inverse, *block_normed, *gate_up, *hidden;           /* a dense block, or the shared experts */
    float *logits, *score, *weight, *sum, *total, *router_lse, *weigh, *count, *rows; /* the routed experts */
    int *expert, *visit, *place, *end;
} Kept;

/* What is between, the same for every layer: (T, D) twice, a row for each visit, and the narrower and the wider side of
   a product. */
typedef struct {
    float *dx, *dnormed, *visits, *narrow, *wide;
} Scratch;

static float *take(float *memory, size_t *used, size_t n) {
    size_t start = *used;
    *used = start + (n + LANES - 1) / LANES * LANES;
    return memory ? memory + start : NULL;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Where everything lies in `memory` (NULL: only how much that is, in floats). Without training each layer, whose input
   comes first, overwrites the one before. */
static size_t lay_out(const Shape *s, int training, float *memory, Scratch *between, Kept *kept) {
    size_t T = (size_t)s->B * s->S, R = T * s->K, used = 0, most = 0, start, heads = s->H * s->C;
    size_t hidden = larger(s->dense_hidden, s->shared_hidden), qkv = heads + 2 * s->G * s->C;
    between->visits = take(memory, &used, R * s->D);
    if (training) {
        between->dx = take(memory, &used, T * s->D);
        between->dnormed = take(memory, &used, T * s->D);
        between->narrow = take(memory, &used, T * larger(larger(heads, hidden), s->K));
        between->wide = take(memory, &used, T * larger(larger(qkv, 2 * hidden), larger(s->V, s->E)));
    }
    start = used;
    for (int l = 0; l <= s->layers; l++) {
        Kept *k = kept + l;
        if (!training) used = start;
        k->x = take(memory, &used, T * s->D);
        k->inverse = take(memory, &used, T);
        k->normed = take(memory, &used, T * s->D);
        if (l == s->layers) {
            k->logits = take(memory, &used, T * s->V);
            k->lse = take(memory, &used, T);
        } else {
            size_t features = l < s->dense_layers ? s->dense_hidden : s->shared_hidden;
            k->qkv = take(memory, &used, T * qkv);
            k->qk = take(memory, &used, T * (s->H + s->G) * s->C);
            k->head_inverse = take(memory, &used, T * (s->H + s->G));
            k->heads = take(memory, &used, T * heads);
            k->lse = take(memory, &used, T * s->H);
            k->middle = take(memory, &used, T * s->D);
            k->block_inverse = take(memory, &used, T);
            k->block_normed = take(memory, &used, T * s->D);
            k->gate_up = take(memory, &used, T * 2 * features);
            k->hidden = take(memory, &used, T * features);
            if (l >= s->dense_layers) {
                k->logits = take(memory, &used, T * s->E);
                k->score = take(memory, &used, T * s->E);
                k->weight = take(memory, &used, R);
                k->sum = take(memory, &used, T);
                k->total = take(memory, &used, T);
                k->router_lse = take(memory, &used, T);
                k->weigh = take(memory, &used, (size_t)s->B * s->E);
                k->count = take(memory, &used, s->E);
                k->rows = take(memory, &used, R * 2 * s->expert_hidden);
                k->expert = (int *)take(memory, &used, R);
                k->visit = (int *)take(memory, &used, R);
                k->place = (int *)take(memory, &used, R);
                k->end = (int *)take(memory, &used, s->E);
            }
        }
        most = used > most ? used : most;
    }
    return most;
}

/* y = x w' + keep y, of w (out, in). */
static void linear(int T, int in, int out, const float *x, const float *w, float keep, float *y, int threads) {
    product_shared(threads, 'N', 'T', T, out, in, x, in, w, in, keep, y, out);
}

/* dw, and dx = dy w + keep dx. */
static void linear_backward(int T, int in, int out, const float *x, const float *w, const float *dy, float *dw,
                            float keep, float *dx, int threads) {
    product_shared(threads, 'T', 'N', out, in, T, dy, out, x, in, 0, dw, in);
    product_shared(threads, 'N', 'N', T, in, out, dy, out, w, in, keep, dx, in);
}

static void attend(const Shape *s, const Layer *w, const float *table, Kept *k) {
    int T = s->B * s->S, D = s->D, width = s->H * s->C;
    rms_forward(T, D, k->x, w->attention_gain, k->normed, k->inverse, s->threads);
    linear(T, D, width + 2 * s->G * s->C, k->normed, w->qkv, 0, k->qkv, s->threads);
    attention_forward(s->B, s->S, s->H, s->G, s->C, k->qkv, w->query_gain, w->key_gain, table, k->qk, k->head_inverse,
                      k->heads, k->lse, s->threads);
    memcpy(k->middle, k->x, (size_t)T * D * sizeof(float));
    linear(T, width, D, k->heads, w->output, 1, k->middle, s->threads);
}

/* between->dx is the gradient of what comes out and becomes that of what goes in. */
static void attend_backward(const Shape *s, const Layer *w, const float *table, const Kept *k, Layer *d,
                            const Scratch *between) {
    int T = s->B * s->S, D = s->D, width = s->H * s->C;
    float *dx = between->dx, *dnormed = between->dnormed, *narrow = between->narrow, *wide = between->wide;
    linear_backward(T, width, D, k->heads, w->output, dx, d->output, 0, narrow, s->threads);
    attention_backward(s->B, s->S, s->H, s->G, s->C, k->qkv, w->query_gain, w->key_gain, table, k->qk, k->head_inverse,
                       k->heads, k->lse, narrow, wide, d->query_gain, d->key_gain, s->threads);
    linear_backward(T, D, width + 2 * s->G * s->C, k->normed, w->qkv, wide, d->qkv, 0, dnormed, s->threads);
    rms_backward(T, D, k->x, w->attention_gain, k->inverse, dnormed, dx, dx, d->attention_gain, s->threads);
}

/* out += the SwiGLU block of `hidden` features. */
static void feed(const Shape *s, int hidden, const float *gate_up, const float *down, Kept *k, float *out) {
    int T = s->B * s->S, D = s->D;
    linear(T, D, 2 * hidden, k->block_normed, gate_up, 0, k->gate_up, s->threads);
    swiglu_forward(T, hidden, k->gate_up, k->hidden, s->threads);
    linear(T, hidden, D, k->hidden, down, 1, out, s->threads);
}

/* between->dnormed = its gradient + keep of what it was. */
static void feed_backward(const Shape *s, int hidden, const float *gate_up, const float *down, const Kept *k,
                          float *dgate_up, float *ddown, float keep, const Scratch *between) {
    int T = s->B * s->S, D = s->D;
    linear_backward(T, hidden, D, k->hidden, down, between->dx, ddown, 0, between->narrow, s->threads);
    swiglu_backward(T, hidden, k->gate_up, between->narrow, between->wide, s->threads);
    linear_backward(T, D, 2 * hidden, k->block_normed, gate_up, between->wide, dgate_up, keep, between->dnormed,
                    s->threads);
}

/* The block behind attention; the router's loss. */
static float block(const Shape *s, int dense, const Layer *w, Kept *k, const Scratch *between, float *out) {
    int T = s->B * s->S, D = s->D;
    float loss = 0;
    rms_forward(T, D, k->middle, w->block_gain, k->block_normed, k->block_inverse, s->threads);
    if (dense) {
        memcpy(out, k->middle, (size_t)T * D * sizeof(float));
        feed(s, s->dense_hidden, w->gate_up, w->down, k, out);
        return 0;
    }
    linear(T, D, s->E, k->block_normed, w->router, 0, k->logits, s->threads);
    route_forward(T, s->E, s->K, s->B, s->softmax, s->balance, s->z, k->logits, w->bias, k->score, k->expert, k->weight,
                  k->sum, k->total, k->router_lse, k->weigh, k->count, &loss, k->visit, k->place, k->end, s->threads);
    for (int e = 0; w->load && e < s->E; e++) w->load[e] += k->count[e];
    experts_forward(T, s->K, s->E, D, s->expert_hidden, k->block_normed, w->gate_up, w->down, k->weight, k->visit,
                    k->place, k->end, k->middle, k->rows, between->visits, out, s->threads);
    if (w->shared_down) feed(s, s->shared_hidden, w->shared_gate_up, w->shared_down, k, out);
    return loss;
}

static void block_backward(const Shape *s, int dense, const Layer *w, const Kept *k, const float *drouter, Layer *d,
                           const Scratch *between) {
    int T = s->B * s->S, D = s->D;
    float *dx = between->dx, *dnormed = between->dnormed, *narrow = between->narrow, *wide = between->wide;
    if (dense) {
        feed_backward(s, s->dense_hidden, w->gate_up, w->down, k, d->gate_up, d->down, 0, between);
    } else {
        experts_backward(T, s->K, s->E, D, s->expert_hidden, k->block_normed, w->gate_up, w->down, k->weight, k->visit,
                         k->place, k->end, k->rows, dx, between->visits, dnormed, d->gate_up, d->down, narrow,
                         s->threads);
        route_backward(T, s->E, s->K, s->B, s->softmax, s->z, k->logits, k->score, k->expert, k->weight, k->sum,
                       k->total, k->router_lse, k->weigh, narrow, drouter, wide, s->threads);
        linear_backward(T, D, s->E, k->block_normed, w->router, wide, d->router, 1, dnormed, s->threads);
        if (w->shared_down)
            feed_backward(s, s->shared_hidden, w->shared_gate_up, w->shared_down, k, d->shared_gate_up, d->shared_down,
                          1, between);
    }
    rms_backward(T, D, k->middle, w->block_gain, k->block_inverse, dnormed, dx, dx, d->block_gain, s->threads);
}

/* Floats that `model_forward` works in; all are kept for the backward pass where it is to follow. */
size_t model_memory(const Shape *s, int training) {
    Kept *kept = malloc((s->layers + 1) * sizeof(Kept));
    Scratch between;
    size_t n = lay_out(s, training, NULL, &between, kept);
    free(kept);
    return n;
}

/* Mean cross-entropy of the targets (T) and the routers' losses: losses (2). Tokens and targets are to be below V:
   whether they are is returned, and where not nothing is done. */
int model_forward(const Shape *s, const Model *w, const float *table, const int64_t *token, const int64_t *target,
                  int training, float *memory, float *losses) {
    int T = s->B * s->S, D = s->D;
    for (int t = 0; t < T; t++)
        if (token[t] < 0 || token[t] >= s->V || target[t] < 0 || target[t] >= s->V) return 0;
    Kept *kept = malloc((s->layers + 1) * sizeof(Kept)), *last = kept + s->layers;
    Scratch between;
    lay_out(s, training, memory, &between, kept);
    for (int t = 0; t < T; t++)
        memcpy(kept->x + (size_t)t * D, w->embedding + (size_t)token[t] * D, D * sizeof(float));
    losses[1] = 0;
    for (int l = 0; l < s->layers; l++) {
        attend(s, w->layer + l, table, kept + l);
        losses[1] += block(s, l < s->dense_layers, w->layer + l, kept + l, &between, kept[l + 1].x);
    }
    rms_forward(T, D, last->x, w->gain, last->normed, last->inverse, s->threads);
    linear(T, D, s->V, last->normed, w->head, 0, last->logits, s->threads);
    entropy_forward(T, s->V, last->logits, target, last->lse, losses, s->threads);
    free(kept);
    return 1;
}

/* Gradients of all parameters, of those of the two losses; after `model_forward` with `training` in the same memory. */
void model_backward(const Shape *s, const Model *w, const float *table, const int64_t *token, const int64_t *target,
                    float *memory, const float *dloss, const float *drouter, Model *d) {
    int T = s->B * s->S, D = s->D;
    Kept *kept = malloc((s->layers + 1) * sizeof(Kept)), *last = kept + s->layers;
    Scratch between;
    lay_out(s, 1, memory, &between, kept);
    float *dx = between.dx;
    entropy_backward(T, s->V, last->logits, target, last->lse, dloss, between.wide, s->threads);
    linear_backward(T, D, s->V, last->normed, w->head, between.wide, d->head, 0, between.dnormed, s->threads);
    memset(dx, 0, (size_t)T * D * sizeof(float));
    rms_backward(T, D, last->x, w->gain, last->inverse, between.dnormed, dx, dx, d->gain, s->threads);
    for (int l = s->layers - 1; l >= 0; l--) {
        block_backward(s, l < s->dense_layers, w->layer + l, kept + l, drouter, d->layer + l, &between);
        attend_backward(s, w->layer + l, table, kept + l, d->layer + l, &between);
    }
    if (d->embedding != d->head) memset(d->embedding, 0, (size_t)s->V * D * sizeof(float)); /* it is, where tied */
    for (int t = 0; t < T; t++) {
        float *row = d->embedding + (size_t)token[t] * D;
        SIMD for (int i = 0; i < D; i++) row[i] += dx[(size_t)t * D + i];
    }
    free(kept);
}

/* ---- the bias of each router (L, each E), by the loads (L, E) of a step */

void balance(int L, int E, const float *load, float *const *bias, float rate) {
    for (int l = 0; l < L; l++, load += E) {
        float total = 0, lean = 0;
        SIMD_SUM(total) for (int e = 0; e < E; e++) total += load[e];
        float mean = total / E;
        SIMD_SUM(lean) for (int e = 0; e < E; e++) lean += (float)(load[e] < mean) - (load[e] > mean);
        SIMD for (int e = 0; e < E; e++)
            bias[l][e] += rate * ((float)(load[e] < mean) - (load[e] > mean) - lean / E);
    }
}

/* ---- AdamW (arXiv:1711.05101) of groups side by side, after clipping the norm of their whole gradient */

typedef struct {
    int64_t size;
    float rate, decay;
} Group;

/* Step `step` (from 1). The norm before clipping is returned: of parts of a fixed size, so that threads change no bit. */
float adamw(int groups, const Group *group, int64_t step, double beta1, double beta2, float eps, float clip,
            const float *gradient, float *value, float *first, float *second, int threads) {
    int64_t n = 0, size = 4096;
    for (int g = 0; g < groups; g++) n += group[g].size;
    int64_t parts = (n + size - 1) / size;
    float *part = numbers(parts);
    PARALLEL FOR for (int64_t p = 0; p < parts; p++) {
        int64_t last = (p + 1) * size < n ? (p + 1) * size : n;
        float s = 0;
        SIMD_SUM(s) for (int64_t i = p * size; i < last; i++) s += gradient[i] * gradient[i];
        part[p] = s;
    }
    double sum = 0;
    for (int64_t p = 0; p < parts; p++) sum += part[p];
    free(part);
    float norm = sqrt(sum), scale = norm > clip ? clip / norm : isnan(norm) ? norm : 1;
    float lean1 = 1 - beta1, lean2 = 1 - beta2, keep2 = beta2;
    float root = 1 / sqrt(1 - pow(beta2, step));
    int64_t start = 0;
    for (int g = 0; g < groups; start += group[g++].size) {
        float move = group[g].rate / (1 - pow(beta1, step)), shrink = 1 - group[g].rate * group[g].decay;
        int64_t last = start + group[g].size;
        PARALLEL FOR for (int64_t i = start; i < last; i += size) {
            int64_t end = i + size < last ? i + size : last;
            SIMD for (int64_t j = i; j < end; j++) {
                float slope = gradient[j] * scale;
                float m = first[j] += (slope - first[j]) * lean1;
                float v = second[j] = second[j] * keep2 + slope * slope * lean2;
                value[j] = value[j] * shrink - move * m / (sqrtf(v) * root + eps);
            }
        }
    }
    return norm;
}
