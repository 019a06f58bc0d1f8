/* AMX: many tokens at once, on tiles of 16 x 64 bytes; AVX-512 does everything else.
 *
 * Activations are the left operand, as they lie: 16 tokens, 64 bytes of each. Weights are the right
 * operand, which wants the 4 bytes (or 2 bfloat16) that meet one dword of the left operand side by
 * side, for 16 outputs in a row. 64 packed bytes of 16 rows are 16 x 16 dwords: transposed once while
 * still packed, masks or table lookups then give whole operand rows.
 */
#include "avx512.h"

#include <string.h>

#define AMX_TARGET                                                                                       \
    __attribute__((target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni," \
                          "avx2,fma,f16c,bmi,bmi2")))

/* GCC's tile loads do not say that they read memory: without this, stores may move behind them */
#define COMPILER_BARRIER() __asm__ volatile("" ::: "memory")

enum {
    SIDE = 16,         /* tokens, and outputs, in a tile */
    INT_FEW = 8,       /* tokens up to which AVX-512 is faster */
    FLOAT_FEW = 4,
    INT_CHUNK = 256,   /* packed bytes of a row whose codes fit the L1 cache for 32 rows */
    FLOAT_CHUNK = 128,
    TILE_BYTES = 1024,
};

/* Tiles 0-3 are sums (token half, output half), 4 and 5 activations, 6 and 7 weights. */
AMX_TARGET static void configure(size_t tokens) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        int second = tile == 2 || tile == 3 || tile == 5;
        size_t rows = tile >= 6 ? SIDE : !second ? tokens : tokens > SIDE ? tokens - SIDE : 1;
        config.row_bytes[tile] = 64;
        config.rows[tile] = (uint8_t)(rows < SIDE ? rows : SIDE);
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* all of it, though the macro names 8 bytes */
    _tile_loadconfig(&config);
}

/* Codes as bytes: [block][plane] tiles for 16 rows. */
AVX512_TARGET static void unpack_bytes(const uint8_t *packed, size_t row_bytes, size_t rows, size_t bytes, uint8_t *panel) {
    const __m512i three = _mm512_set1_epi8(3);
    for (size_t at = 0; at < bytes; at += 64, panel += 4 * TILE_BYTES) {
        __m512i v[16];
        /* prefetch the next chunk */
        transpose_dwords(packed + at, row_bytes, rows, bytes - at, INT_CHUNK, v);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
#pragma GCC unroll 4
            for (unsigned p = 0; p < 4; p++)
                _mm512_store_si512(panel + p * TILE_BYTES + 64 * i, _mm512_and_si512(_mm512_srli_epi32(v[i], 2 * p), three));
    }
}

/* Trits as bfloat16, two to a dword: [block][pair of codes] tiles for 16 rows. */
AVX512_TARGET static void unpack_pairs(const uint8_t *packed, size_t row_bytes, size_t rows, size_t bytes, uint8_t *panel) {
    enum { N = 0xbf80, P = 0x3f80 }; /* -1 and 1 */
#define PAIR(second) N | (second) << 16, (second) << 16, P | (second) << 16, (second) << 16
    const __m512i table = _mm512_loadu_si512((const uint32_t[16]){PAIR((uint32_t)N), PAIR(0u), PAIR((uint32_t)P), PAIR(0u)});
#undef PAIR
    for (size_t at = 0; at < bytes; at += 64, panel += 8 * TILE_BYTES) {
        __m512i v[16];
        transpose_dwords(packed + at, row_bytes, rows, bytes - at, FLOAT_CHUNK, v);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
#pragma GCC unroll 8
            for (unsigned pair = 0; pair < 8; pair++)
                _mm512_store_si512(panel + pair * TILE_BYTES + 64 * i,
                                   _mm512_permutexvar_epi32(_mm512_srli_epi32(v[i], 4 * pair), table));
    }
}

/* 32 rows of a chunk (two panels, `steps` tiles each) against up to 32 tokens. */
AMX_TARGET static void int_tiles(const uint8_t *panel, size_t steps, const int8_t *x, size_t token_stride,
                                 size_t tokens, int add, int32_t *out, size_t out_stride) {
    const uint8_t *second = panel + steps * TILE_BYTES;
    size_t line = out_stride * 4;
    int32_t *lower = out + SIDE * out_stride;
    int both = tokens > SIDE;
    COMPILER_BARRIER();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (add) {
        _tile_loadd(0, out, line);
        _tile_loadd(1, out + SIDE, line);
    }
    if (add && both) {
        _tile_loadd(2, lower, line);
        _tile_loadd(3, lower + SIDE, line);
    }
    for (size_t step = 0; step < steps; step++) {
        _tile_loadd(4, x + 64 * step, token_stride);
        _tile_loadd(6, panel + step * TILE_BYTES, 64);
        _tile_loadd(7, second + step * TILE_BYTES, 64);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if (both) {
            _tile_loadd(5, x + SIDE * token_stride + 64 * step, token_stride);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
    _tile_stored(0, out, line);
    _tile_stored(1, out + SIDE, line);
    if (both) {
        _tile_stored(2, lower, line);
        _tile_stored(3, lower + SIDE, line);
    }
}

AMX_TARGET void tp_amx_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums,
                                int32_t *out, size_t out_stride) {
    if (tile->tokens <= INT_FEW) {
        tp_avx512_int_dots(tile, planes, sums, out, out_stride);
        return;
    }
    size_t bytes = tp_row_bytes(tile->columns), configured = 0;
    uint8_t *panel = tile->scratch;
    for (size_t first = 0; first < bytes; first += INT_CHUNK) {
        size_t count = bytes - first < INT_CHUNK ? bytes - first : INT_CHUNK, steps = (count + 63) / 64 * 4;
        for (size_t row = 0; row < tile->rows; row += 2 * SIDE) {
            for (size_t half = 0; half < 2; half++) {
                size_t start = row + half * SIDE, rows = start < tile->rows ? tile->rows - start : 0;
                const uint8_t *packed = tile->packed + (rows ? start * tile->row_bytes + first : 0);
                unpack_bytes(packed, tile->row_bytes, rows, count, panel + half * steps * TILE_BYTES);
            }
            for (size_t token = 0; token < tile->tokens; token += 2 * SIDE) {
                size_t tokens = tile->tokens - token < 2 * SIDE ? tile->tokens - token : 2 * SIDE;
                if (tokens != configured) configure(configured = tokens);
                int_tiles(panel, steps, planes + token * tile->token_stride + first * 4, tile->token_stride, tokens,
                          first > 0, out + token * out_stride + row, out_stride);
            }
        }
    }
    _tile_release();
    for (size_t token = 0; token < tile->tokens; token++)
        for (size_t row = 0; row < tile->rows; row++) out[token * out_stride + row] -= sums[token];
}

/* A float is the sum of three bfloat16: its upper half, that of what is left, and what is left then.
 * All three are exact, and so are their products with trits; only sums round. They are kept behind the
 * lanes as [block][pair of codes][part][lane], a tile row of 64 bytes each. */
AVX512_TARGET void tp_amx_arrange(const float *x, size_t columns, size_t tokens, float *lanes) {
    size_t blocks = tp_blocks(columns);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000), infinity = _mm512_set1_epi32(0x7f800000);
    tp_avx512_arrange(x, columns, tokens, lanes);
    if (tokens == 1) return;
    __m512i *parts = (__m512i *)(lanes + blocks * TP_BLOCK);
    for (size_t i = 0; i < blocks * 8; i++, parts += 3) {
        __m512 rest[2] = {_mm512_loadu_ps(lanes + 32 * i), _mm512_loadu_ps(lanes + 32 * i + 16)};
        /* nothing is left of an infinity or NaN, rather than a NaN */
        __mmask16 finite[2];
        for (int c = 0; c < 2; c++)
            finite[c] = _mm512_cmplt_epu32_mask(_mm512_and_si512(_mm512_castps_si512(rest[c]), _mm512_set1_epi32(0x7fffffff)), infinity);
        for (int part = 0; part < 3; part++) {
            __m512i bits[2];
            for (int c = 0; c < 2; c++) {
                bits[c] = _mm512_and_si512(_mm512_castps_si512(rest[c]), upper);
                rest[c] = _mm512_maskz_sub_ps(finite[c], rest[c], _mm512_castsi512_ps(bits[c]));
            }
            _mm512_storeu_si512(parts + part, _mm512_or_si512(_mm512_srli_epi32(bits[0], 16), bits[1]));
        }
    }
}

AMX_TARGET static void float_tiles(const uint8_t *panel, size_t steps, const uint8_t *x, size_t token_bytes,
                                   size_t tokens, int add, float *out, size_t out_stride) {
    const uint8_t *second = panel + steps * TILE_BYTES;
    size_t line = out_stride * 4;
    float *lower = out + SIDE * out_stride;
    int both = tokens > SIDE;
    COMPILER_BARRIER();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (add) {
        _tile_loadd(0, out, line);
        _tile_loadd(1, out + SIDE, line);
    }
    if (add && both) {
        _tile_loadd(2, lower, line);
        _tile_loadd(3, lower + SIDE, line);
    }
    for (size_t step = 0; step < steps; step++) {
        _tile_loadd(6, panel + step * TILE_BYTES, 64);
        _tile_loadd(7, second + step * TILE_BYTES, 64);
        for (size_t part = 3; part-- > 0;) { /* the smallest first */
            const uint8_t *here = x + (3 * step + part) * 64;
            _tile_loadd(4, here, token_bytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (both) {
                _tile_loadd(5, here + SIDE * token_bytes, token_bytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, out, line);
    _tile_stored(1, out + SIDE, line);
    if (both) {
        _tile_stored(2, lower, line);
        _tile_stored(3, lower + SIDE, line);
    }
}

AMX_TARGET void tp_amx_float_dots(const tp_tile *tile, const float *lanes, const float *scales,
                                  size_t group, float *out, size_t out_stride) {
    if (tile->tokens <= FLOAT_FEW || scales) { /* a scaled trit is no bfloat16 */
        tp_avx512_float_dots(tile, lanes, scales, group, out, out_stride);
        return;
    }
    size_t bytes = tp_row_bytes(tile->columns), configured = 0, token_bytes = tile->token_stride * 4;
    const uint8_t *parts = (const uint8_t *)(lanes + tp_blocks(tile->columns) * TP_BLOCK);
    uint8_t *panel = tile->scratch;
    for (size_t first = 0; first < bytes; first += FLOAT_CHUNK) {
        size_t count = bytes - first < FLOAT_CHUNK ? bytes - first : FLOAT_CHUNK, steps = (count + 63) / 64 * 8;
        for (size_t row = 0; row < tile->rows; row += 2 * SIDE) {
            for (size_t half = 0; half < 2; half++) {
                size_t start = row + half * SIDE, rows = start < tile->rows ? tile->rows - start : 0;
                const uint8_t *packed = tile->packed + (rows ? start * tile->row_bytes + first : 0);
                unpack_pairs(packed, tile->row_bytes, rows, count, panel + half * steps * TILE_BYTES);
            }
            for (size_t token = 0; token < tile->tokens; token += 2 * SIDE) {
                size_t tokens = tile->tokens - token < 2 * SIDE ? tile->tokens - token : 2 * SIDE;
                if (tokens != configured) configure(configured = tokens);
                float_tiles(panel, steps, parts + token * token_bytes + first / 64 * 8 * 192, token_bytes, tokens,
                            first > 0, out + token * out_stride + row, out_stride);
            }
        }
    }
    _tile_release();
}
