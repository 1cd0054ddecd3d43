/* The machine of upscale/sources/utm.py, which defines it: runs random or given programs.

   Words of the random program come from Philox 4x32-10 as in upscale/randomness.py, made when they are needed: of
   thousands of instructions that a program may have, some forty are read on average. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { HALTED, TIMEOUT, OUTPUT_LIMIT };

/* The first seven are what the uniform sampler draws from. BODY_LATER is a '[' that was first met with a zero cell. */
enum { PLUS, MINUS, RIGHT, LEFT, OPEN, CLOSE, PRINT, BODY_LATER, SYMBOLS };

typedef struct {
    int32_t memory_size, alphabet;
    int64_t maximal_steps, program_length, output_limit;
    uint32_t key[2], purpose, round, lane;
    const uint32_t *transitions; /* (73, 8) cumulative weights, or NULL for the uniform sampler */
} Settings;

typedef struct {
    uint8_t *program, *memory;
    int32_t *jump, *stack;
} Workspace;

typedef struct {
    int64_t block;
    uint32_t words[4];
} Words;

static void philox(const Settings *settings, uint32_t index, uint32_t out[4]) {
    uint32_t first = index, second = settings->purpose, third = settings->round, fourth = settings->lane;
    uint32_t low = settings->key[0], high = settings->key[1];
    for (int cipher_round = 0; cipher_round < 10; cipher_round++) {
        uint64_t product_first = (uint64_t)first * 0xD2511F53u, product_third = (uint64_t)third * 0xCD9E8D57u;
        first = (uint32_t)(product_third >> 32) ^ second ^ low;
        third = (uint32_t)(product_first >> 32) ^ fourth ^ high;
        second = (uint32_t)product_third;
        fourth = (uint32_t)product_first;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    out[0] = first, out[1] = second, out[2] = third, out[3] = fourth;
}

static int drawn_symbol(const Settings *settings, Words *words, int64_t place, const uint8_t *program, int64_t length) {
    if (place >> 2 != words->block) {
        words->block = place >> 2;
        philox(settings, (uint32_t)words->block, words->words);
    }
    uint64_t word = words->words[place & 3];
    if (!settings->transitions) return (int)(word * 7 >> 32);
    /* Context 0 is none, 1 + a one symbol, 9 + 8 a + b two. */
    int64_t context = length == 0 ? 0 : length == 1 ? 1 + program[0] : 9 + 8 * program[length - 2] + program[length - 1];
    const uint32_t *cumulative = settings->transitions + SYMBOLS * context;
    uint32_t height = (uint32_t)(word * cumulative[SYMBOLS - 1] >> 32);
    int symbol = 0;
    while (cumulative[symbol] <= height) symbol++;
    return symbol;
}

/* Runs one program; `given` holds its symbols, or is NULL for a random one whose words begin at `first_word`. */
static int run(const Settings *settings, Workspace *work, const uint8_t *given, int64_t first_word, uint8_t *output,
               int64_t *output_length, int64_t *steps, int64_t *executed) {
    uint8_t *program = work->program, *memory = work->memory;
    int64_t length = 0, at = 0, pointer = 0, depth = 0, printed = 0, taken = 0;
    Words words = {.block = -1};
    int status;
    memset(memory, 0, settings->memory_size);
    for (;;) {
        int fresh = at == length;
        if (fresh) {
            if (length == settings->program_length) {
                status = HALTED;
                break;
            }
            int symbol = given ? given[length] : drawn_symbol(settings, &words, first_word + length, program, length);
            if (symbol == OPEN && !memory[pointer]) symbol = BODY_LATER;
            else if (symbol == BODY_LATER && memory[pointer]) symbol = OPEN;
            program[length] = (uint8_t)symbol;
            work->jump[length++] = -1;
        }
        switch (program[at]) {
        case PLUS:
            memory[pointer] = (uint8_t)(memory[pointer] + 1 == settings->alphabet ? 0 : memory[pointer] + 1);
            at++;
            break;
        case MINUS:
            memory[pointer] = (uint8_t)(memory[pointer] ? memory[pointer] - 1 : settings->alphabet - 1);
            at++;
            break;
        case RIGHT:
            pointer = pointer + 1 == settings->memory_size ? 0 : pointer + 1;
            at++;
            break;
        case LEFT:
            pointer = pointer ? pointer - 1 : settings->memory_size - 1;
            at++;
            break;
        case OPEN:
            if (fresh) {
                work->stack[depth++] = (int32_t)at++;
            } else if (memory[pointer]) {
                at++;
            } else {
                if (work->jump[at] < 0) work->jump[at] = (int32_t)length;
                at = work->jump[at];
            }
            break;
        case BODY_LATER:
            if (fresh || !memory[pointer]) {
                at++;
            } else {
                if (work->jump[at] < 0) {
                    work->jump[at] = (int32_t)length;
                    work->stack[depth++] = (int32_t)at;
                }
                at = work->jump[at];
            }
            break;
        case CLOSE:
            if (fresh && depth) work->jump[at] = work->stack[--depth];
            at = work->jump[at] < 0 ? at + 1 : work->jump[at];
            break;
        case PRINT:
            output[printed++] = memory[pointer];
            at++;
            break;
        }
        if (++taken == settings->maximal_steps) {
            status = TIMEOUT;
            break;
        }
        if (printed >= settings->output_limit) {
            status = OUTPUT_LIMIT;
            break;
        }
    }
    *output_length = printed, *steps = taken, *executed = length;
    return status;
}

static int allocate(const Settings *settings, Workspace *work) {
    int64_t most = settings->program_length < settings->maximal_steps ? settings->program_length : settings->maximal_steps;
    work->program = malloc(most);
    work->memory = malloc(settings->memory_size);
    work->jump = malloc(most * sizeof(int32_t));
    work->stack = malloc(most * sizeof(int32_t));
    return work->program && work->memory && work->jump && work->stack;
}

static void release(Workspace *work) {
    free(work->program), free(work->memory), free(work->jump), free(work->stack);
}

/* `rows` random programs into `tokens` (rows, output_limit), what they print, and how much into `printed` (rows).
   The rest of a row repeats what was printed, or is zero. Returns 0 without memory. */
int upscale_utm_write(const Settings *settings, int64_t rows, int repeat, uint8_t *tokens, int64_t *printed) {
    Workspace work;
    int fits = allocate(settings, &work);
    for (int64_t row = 0; fits && row < rows; row++) {
        uint8_t *output = tokens + row * settings->output_limit;
        int64_t steps, executed;
        run(settings, &work, NULL, row * settings->program_length, output, printed + row, &steps, &executed);
        for (int64_t place = printed[row]; place < settings->output_limit; place++)
            output[place] = repeat && printed[row] ? output[place - printed[row]] : 0;
    }
    release(&work);
    return fits;
}

/* One given program of settings->program_length symbols: its status, or -1 without memory. `tokens` has room for
   output_limit, `executed` for program_length; `lengths` gets tokens printed, steps, symbols executed. */
int upscale_utm_run(const Settings *settings, const uint8_t *program, uint8_t *tokens, uint8_t *executed,
                    int64_t lengths[3]) {
    Workspace work;
    int status = -1;
    if (allocate(settings, &work)) {
        status = run(settings, &work, program, 0, tokens, lengths, lengths + 1, lengths + 2);
        memcpy(executed, work.program, lengths[2]);
    }
    release(&work);
    return status;
}
