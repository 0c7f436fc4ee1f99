/* nvJPEG 13 without engines, and as much of CUDA's driver as it needs, for tests/backends/test_tensor_decode.py: strict
   about handles, the order of calls and who holds the GIL; what its structure looks like is written down here once more.
   A "JPEG" needs a frame header; what its pixels are is a formula. Words in it play tricks: CORRUPT fails its whole
   batch, HALVED, WIDER and UNREADABLE are about its header. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned char* channel[4]; size_t pitch[4]; } Image;
typedef struct { int kind, backend, count, output; unsigned flags; void* recorded_on; } Handle;
enum { LIBRARY = 71, STATE, STREAM, EVENT };

int fake_no_engines = 0, fake_refuse = 0, fake_break = 0, fake_priority = 0, fake_lingers = 0;
int fake_live = 0, fake_made = 0, fake_with_gil = 0, fake_without_gil = 0, fake_batches = 0, fake_largest = 0;
int fake_inside = 0, fake_most_inside = 0, fake_flags = -1, fake_synchronized = 0;
volatile int fake_holds = 0; /* batches stay in the call */
int fake_pipelined_ms = 0;   /* how long a batch takes in that way */
void *fake_waited = 0, *fake_waits = 0; /* which streams of the caller's came before and behind */

static void need(int condition, const char* what)
{
    if (!condition) { fprintf(stderr, "fake nvJPEG: %s\n", what); abort(); }
}

static void count_call(void)
{
    int (*has_gil)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Check");
    if (has_gil()) __atomic_add_fetch(&fake_with_gil, 1, __ATOMIC_RELAXED);
    else __atomic_add_fetch(&fake_without_gil, 1, __ATOMIC_RELAXED);
}

static Handle* checked(void* handle, int kind, const char* what)
{
    need(handle && ((Handle*)handle)->kind == kind, what);
    return handle;
}

static Handle* made(void** out, int kind)
{
    need(!*out, "a handle would be lost");
    *out = calloc(1, sizeof(Handle));
    fake_live++;
    fake_made++;
    ((Handle*)*out)->kind = kind;
    return *out;
}

static int destroyed(void* handle, int kind)
{
    checked(handle, kind, "destroyed what is not there")->kind = 0;
    free(handle);
    fake_live--;
    return 0;
}

/* ---- nvJPEG ---- */

int nvjpegCreateEx(int backend, void* device, void* pinned, unsigned flags, void** out)
{
    need(!device && !pinned && (backend == 3 || backend == 2) && !(flags & ~33u), "how it is created");
    if (fake_refuse) return 5;
    if (backend == 3 && fake_no_engines) return 7;
    Handle* it = made(out, LIBRARY);
    it->backend = backend;
    it->flags = flags;
    return 0;
}
int nvjpegDestroy(void* h) { return destroyed(h, LIBRARY); }
int nvjpegJpegStateCreate(void* h, void** out)
{
    checked(h, LIBRARY, "no library");
    made(out, STATE);
    return 0;
}
int nvjpegJpegStateDestroy(void* h) { return destroyed(h, STATE); }

static int has(const unsigned char* data, size_t length, const char* word)
{
    return memmem(data, length, word, strlen(word)) != 0;
}

int nvjpegGetImageInfo(void* h, const unsigned char* data, size_t length, int* channels, int* sampling, int* widths, int* heights)
{
    count_call();
    checked(h, LIBRARY, "no library");
    if (length < 20 || has(data, length, "UNREADABLE")) return 3;
    const unsigned char* frame = memmem(data, length, "\xff\xc0", 2);
    if (!frame) return 3;
    heights[0] = frame[5] << 8 | frame[6];
    widths[0] = (frame[7] << 8 | frame[8]) + has(data, length, "WIDER");
    *channels = frame[9];
    *sampling = has(data, length, "HALVED") ? 4 : frame[9] == 1 ? 6 : 2;
    return 0;
}

int nvjpegDecodeBatchedInitialize(void* h, void* s, int count, int threads, int output)
{
    count_call();
    checked(h, LIBRARY, "no library");
    need(count > 0 && threads > 0 && (output == 5 || output == 6), "how a batch is prepared");
    Handle* state = checked(s, STATE, "no state");
    state->count = count;
    state->output = output;
    return 0;
}

int nvjpegDecodeBatched(void* h, void* s, const unsigned char** sources, const size_t* lengths, Image* images, void* stream)
{
    count_call();
    Handle *library = checked(h, LIBRARY, "no library"), *state = checked(s, STATE, "no state");
    need(checked(stream, STREAM, "no stream of its own")->recorded_on != 0, "nothing was waited for");
    need(!((Handle*)stream)->count, "the batch before is still at work");
    ((Handle*)stream)->count = fake_lingers;
    int inside = __atomic_add_fetch(&fake_inside, 1, __ATOMIC_SEQ_CST);
    if (inside > fake_most_inside) fake_most_inside = inside;
    while (fake_holds) usleep(1000);
    if (!(library->flags & 1)) usleep(1000 * fake_pipelined_ms);
    int status = 0;
    if (fake_break) status = 6;
    fake_batches++;
    fake_flags = (int)library->flags;
    if (state->count > fake_largest) fake_largest = state->count;
    for (int i = 0; i < state->count && !status; i++) {
        Image* image = &images[i];
        int width[4], height[4], channels, sampling;
        need(!nvjpegGetImageInfo(h, sources[i], lengths[i], &channels, &sampling, width, height), "a damaged header");
        need(image->channel[0] && image->pitch[0] >= 3 * (size_t)width[0], "rows overlap");
        if (has(sources[i], lengths[i], "CORRUPT")) { status = 3; break; }
        unsigned seed = 0;
        for (size_t at = 0; at < lengths[i]; at++) seed += sources[i][at];
        for (int y = 0; y < height[0]; y++)
            for (int x = 0; x < width[0]; x++)
                for (int c = 0; c < 3; c++) {
                    int channel = state->output == 6 ? 2 - c : c;
                    image->channel[0][y * image->pitch[0] + 3 * x + c] = (unsigned char)(seed + x + 5 * y + 60 * channel);
                }
    }
    __atomic_sub_fetch(&fake_inside, 1, __ATOMIC_SEQ_CST);
    return status;
}

/* ---- the driver: streams that are not the fake's own are numbers ---- */

int cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return 0; }
int cuStreamCreateWithPriority(void** out, unsigned flags, int priority)
{
    need(flags == 1, "a stream that waits for others");
    fake_priority = priority;
    made(out, STREAM);
    return 0;
}
int cuStreamQuery(void* h) { return checked(h, STREAM, "no stream")->count ? 600 : 0; } /* not ready */
int cuStreamSynchronize(void* h)
{
    count_call();
    checked(h, STREAM, "no stream")->count = 0;
    fake_synchronized++;
    return 0;
}
int cuStreamDestroy_v2(void* h) { return destroyed(h, STREAM); }
int cuEventCreate(void** out, unsigned flags) { need(flags == 2, "a timed event"); made(out, EVENT); return 0; }
int cuEventDestroy_v2(void* h) { return destroyed(h, EVENT); }
int cuEventRecord(void* event, void* stream)
{
    checked(event, EVENT, "no event")->recorded_on = stream;
    return 0;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned flags)
{
    void* other = checked(event, EVENT, "no event")->recorded_on;
    need(other && !flags && other != stream, "waits for nothing");
    if ((uintptr_t)stream < 1000) {
        checked(other, STREAM, "waits for a stranger's stream")->recorded_on = 0;
        fake_waits = stream;
    } else {
        checked(stream, STREAM, "no stream")->recorded_on = other;
        fake_waited = other;
    }
    return 0;
}
