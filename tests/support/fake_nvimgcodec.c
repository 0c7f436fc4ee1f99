/* nvImageCodec 0.9 without codecs, for tests/backends/test_tensor_decode.py: strict about handles and structures, which are
   written down here once more. A "JPEG" needs a frame header; what its pixels are is a formula. Words in it play
   tricks: CORRUPT fails, SPOILER fails its whole batch, RGBCODED, WIDER and UNREADABLE are about its header. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEAD int struct_type; size_t struct_size; void* struct_next
typedef struct { HEAD; uint32_t version, cudart_version; } Properties;
typedef struct { HEAD; int builtin, extensions; const char* path; int messenger; void* desc; uint32_t severity, category; } InstanceInfo;
typedef struct { HEAD; void* instance; const char* id; uint32_t version, api_version; void *create, *destroy; } ExtensionDesc;
typedef struct { HEAD; void *device_allocator, *pinned_allocator; int threads; void* executor; int device_id, pre_init, skip_pre_sync, num_backends; void* backends; } Execution;
typedef struct { HEAD; int apply_exif_orientation; } DecodeParams;
typedef struct { HEAD; int rotated, flip_x, flip_y; } Orientation;
typedef struct { HEAD; uint32_t width, height; size_t row_stride; uint32_t num_channels; int sample_type; uint8_t precision; } Plane;
typedef struct { HEAD; char codec_name[256]; int color_spec, chroma, sample_format; Orientation orientation; uint32_t num_planes; Plane planes[32]; void* buffer; int buffer_kind; void* stream; } Image;

typedef struct Handle { int kind; const unsigned char* data; size_t length; Image image; uint32_t* statuses; int count; } Handle;
enum { INSTANCE = 71, EXTENSION, DECODER, STREAM, IMAGE, FUTURE };

int fake_version = 900, fake_cudart = 13000, fake_refuse_gpu = 0, fake_break = 0;
int fake_live = 0, fake_made = 0, fake_with_gil = 0, fake_without_gil = 0, fake_batches = 0, fake_largest = 0;
int fake_threads = 0, fake_device = 0;
char fake_options[200];
void* fake_stream = 0;

static void need(int condition, const char* what)
{
    if (!condition) { fprintf(stderr, "fake nvImageCodec: %s\n", what); abort(); }
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
    if (!*out) { *out = calloc(1, sizeof(Handle)); fake_live++; fake_made++; ((Handle*)*out)->kind = kind; }
    return checked(*out, kind, "a handle of another kind is used again");
}

static int destroyed(void* handle, int kind)
{
    count_call();
    Handle* it = checked(handle, kind, "destroyed what is not there");
    it->kind = 0;
    free(it->statuses);
    free(it);
    fake_live--;
    return 0;
}

static void need_struct(const void* pointer, int type, size_t size)
{
    struct { HEAD; } const* head = pointer;
    need(head && head->struct_type == type && head->struct_size == size && !head->struct_next, "a structure of another layout");
}

int nvimgcodecGetProperties(Properties* p)
{
    need_struct(p, 1, sizeof *p);
    p->version = fake_version;
    p->cudart_version = fake_cudart;
    return 0;
}
int nvimgcodecExtensionModuleEntry(ExtensionDesc* d) { need_struct(d, 27, sizeof *d); d->id = "fake"; return 0; }
int nvimgcodecInstanceCreate(void** out, const InstanceInfo* info)
{
    count_call();
    need_struct(info, 2, sizeof *info);
    need(info->builtin == 1 && !info->extensions && !info->messenger, "an instance with more than it needs");
    made(out, INSTANCE);
    return 0;
}
int nvimgcodecInstanceDestroy(void* h) { return destroyed(h, INSTANCE); }
int nvimgcodecExtensionCreate(void* instance, void** out, ExtensionDesc* d)
{
    checked(instance, INSTANCE, "no instance");
    need_struct(d, 27, sizeof *d);
    need(!strcmp(d->id, "fake"), "another extension");
    made(out, EXTENSION);
    return 0;
}
int nvimgcodecExtensionDestroy(void* h) { return destroyed(h, EXTENSION); }
int nvimgcodecDecoderCreate(void* instance, void** out, const Execution* e, const char* options)
{
    checked(instance, INSTANCE, "no instance");
    need_struct(e, 30, sizeof *e);
    need(e->pre_init == 1 && !e->skip_pre_sync && !e->num_backends && !e->executor && !e->device_allocator, "execution");
    fake_threads = e->threads;
    fake_device = e->device_id;
    snprintf(fake_options, sizeof fake_options, "%s", options);
    if (fake_refuse_gpu) return 7;
    made(out, DECODER);
    return 0;
}
int nvimgcodecDecoderDestroy(void* h) { return destroyed(h, DECODER); }

static int has(const Handle* s, const char* word) { return memmem(s->data, s->length, word, strlen(word)) != 0; }

int nvimgcodecCodeStreamCreateFromHostMem(void* instance, void** out, const unsigned char* data, size_t length, void* view)
{
    count_call();
    checked(instance, INSTANCE, "no instance");
    need(!view, "a view");
    Handle* s = made(out, STREAM);
    s->data = data;
    s->length = length;
    return length < 20 ? 3 : 0;
}
int nvimgcodecCodeStreamDestroy(void* h) { return destroyed(h, STREAM); }
int nvimgcodecCodeStreamGetImageInfo(void* handle, Image* info)
{
    count_call();
    Handle* s = checked(handle, STREAM, "no code stream");
    need_struct(info, 11, sizeof *info);
    if (has(s, "UNREADABLE")) return 13;
    const unsigned char* frame = memmem(s->data, s->length, "\xff\xc0", 2);
    need(frame != 0, "no frame");
    info->planes[0].height = frame[5] << 8 | frame[6];
    info->planes[0].width = (frame[7] << 8 | frame[8]) + has(s, "WIDER");
    info->planes[0].sample_type = 0x0802;
    info->color_spec = has(s, "RGBCODED") ? 1 : frame[9] == 1 ? 2 : 3;
    return 0;
}
int nvimgcodecImageCreate(void* instance, void** out, const Image* info)
{
    count_call();
    checked(instance, INSTANCE, "no instance");
    need_struct(info, 11, sizeof *info);
    need_struct(&info->orientation, 7, sizeof(Orientation));
    for (int p = 0; p < 32; p++) need_struct(&info->planes[p], 12, sizeof(Plane));
    need(info->color_spec == 1 && !info->chroma && info->num_planes == 1, "colors");
    need(info->sample_format == 8 || info->sample_format == 10, "sample format");
    need(info->planes[0].num_channels == 3 && info->planes[0].sample_type == 0x0802, "samples");
    need(info->planes[0].row_stride >= 3 * info->planes[0].width, "rows overlap");
    need(info->buffer && info->buffer_kind == (fake_device == -99999 ? 2 : 1), "buffer");
    made(out, IMAGE)->image = *info;
    return 0;
}
int nvimgcodecImageDestroy(void* h) { return destroyed(h, IMAGE); }

int nvimgcodecDecoderDecode(void* decoder, void** streams, void** images, int count, const DecodeParams* params, void** out)
{
    count_call();
    checked(decoder, DECODER, "no decoder");
    need_struct(params, 5, sizeof *params);
    need(!params->apply_exif_orientation && count > 0, "parameters");
    if (fake_break) return 20;
    Handle* future = made(out, FUTURE);
    future->statuses = calloc(count, 4);
    future->count = count;
    fake_batches++;
    if (count > fake_largest) fake_largest = count;
    int spoiled = 0;
    for (int i = 0; i < count; i++) spoiled |= has(checked(streams[i], STREAM, "no code stream"), "SPOILER");
    for (int i = 0; i < count; i++) {
        Handle* s = streams[i];
        Image* image = &checked(images[i], IMAGE, "no image")->image;
        future->statuses[i] = has(s, "CORRUPT") ? 7 : spoiled ? 3 : 1;
        fake_stream = image->stream;
        unsigned seed = 0;
        for (size_t at = 0; at < s->length; at++) seed += s->data[at];
        for (uint32_t y = 0; y < image->planes[0].height; y++)
            for (uint32_t x = 0; x < image->planes[0].width; x++)
                for (int c = 0; c < 3; c++) {
                    int channel = image->sample_format == 10 ? 2 - c : c;
                    ((unsigned char*)image->buffer)[y * image->planes[0].row_stride + 3 * x + c]
                        = (unsigned char)(seed + x + 5 * y + 60 * channel);
                }
    }
    return 0;
}
int nvimgcodecFutureWaitForAll(void* h) { count_call(); checked(h, FUTURE, "no future"); return 0; }
int nvimgcodecFutureGetProcessingStatus(void* h, uint32_t* statuses, size_t* size)
{
    count_call();
    Handle* f = checked(h, FUTURE, "no future");
    need(*size == (size_t)f->count, "room for the statuses");
    memcpy(statuses, f->statuses, 4 * f->count);
    return 0;
}
int nvimgcodecFutureDestroy(void* h) { return destroyed(h, FUTURE); }
