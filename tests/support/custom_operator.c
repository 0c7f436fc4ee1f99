/* A library of one operator for ONNX Runtime, fastpipe.test::Twice: float -> float, y = 2 x.
 *
 * ONNX Runtime's wheels have no headers. Its C interface is a table of functions which only ever grows at its end, so
 * that the places of those used here, and the first fields of an operator, are the same in all versions.
 */
#include <stddef.h>
#include <stdint.h>

enum {
    CREATE_CUSTOM_OP_DOMAIN = 26,
    CUSTOM_OP_DOMAIN_ADD = 27,
    ADD_CUSTOM_OP_DOMAIN = 28,
    GET_TENSOR_MUTABLE_DATA = 51,
    GET_DIMENSIONS_COUNT = 61,
    GET_DIMENSIONS = 62,
    GET_TENSOR_TYPE_AND_SHAPE = 65,
    KERNEL_CONTEXT_GET_INPUT = 90,
    KERNEL_CONTEXT_GET_OUTPUT = 91,
    RELEASE_TENSOR_TYPE_AND_SHAPE_INFO = 99,
};

enum { API_VERSION = 7, ELEMENT_FLOAT = 1, MOST_AXES = 8 };

typedef void *(*Function)(void *, ...);
typedef const Function *Api;
typedef struct { const void *(*get_api)(uint32_t version); const char *(*get_version)(void); } ApiBase;

typedef struct Operator {
    uint32_t version;
    void *(*create_kernel)(const struct Operator *, Api, const void *info);
    const char *(*get_name)(const struct Operator *);
    const char *(*get_provider)(const struct Operator *);
    int (*get_input_type)(const struct Operator *, size_t index);
    size_t (*get_input_count)(const struct Operator *);
    int (*get_output_type)(const struct Operator *, size_t index);
    size_t (*get_output_count)(const struct Operator *);
    void (*compute)(void *kernel, void *context);
    void (*destroy_kernel)(void *kernel);
    /* Of later versions, of which some ask whatever the operator's own version is: 0 is the default of each. */
    int (*get_input_characteristic)(const struct Operator *, size_t index);
    int (*get_output_characteristic)(const struct Operator *, size_t index);
    int (*get_input_memory_type)(const struct Operator *, size_t index);
    void *others[16];
} Operator;

static Api api;

static void *create_kernel(const Operator *op, Api of_session, const void *info) { (void)op; (void)of_session; return (void *)info; }
static const char *get_name(const Operator *op) { (void)op; return "Twice"; }
static const char *get_provider(const Operator *op) { (void)op; return NULL; }
static int get_type(const Operator *op, size_t index) { (void)op; (void)index; return ELEMENT_FLOAT; }
static int get_default(const Operator *op, size_t index) { (void)op; (void)index; return 0; }
static size_t get_count(const Operator *op) { (void)op; return 1; }
static void destroy_kernel(void *kernel) { (void)kernel; }

static void compute(void *kernel, void *context)
{
    void *input, *output, *info;
    float *from, *to;
    int64_t axes[MOST_AXES];
    size_t axis_count, count = 1;
    (void)kernel;
    ((void *(*)(void *, size_t, void **))api[KERNEL_CONTEXT_GET_INPUT])(context, 0, &input);
    api[GET_TENSOR_TYPE_AND_SHAPE](input, &info);
    api[GET_DIMENSIONS_COUNT](info, &axis_count);
    if (axis_count > MOST_AXES)
        return;
    ((void *(*)(void *, int64_t *, size_t))api[GET_DIMENSIONS])(info, axes, axis_count);
    api[RELEASE_TENSOR_TYPE_AND_SHAPE_INFO](info);
    ((void *(*)(void *, size_t, const int64_t *, size_t, void **))api[KERNEL_CONTEXT_GET_OUTPUT])(
        context, 0, axes, axis_count, &output);
    api[GET_TENSOR_MUTABLE_DATA](input, &from);
    api[GET_TENSOR_MUTABLE_DATA](output, &to);
    for (size_t axis = 0; axis < axis_count; axis++)
        count *= (size_t)axes[axis];
    for (size_t index = 0; index < count; index++)
        to[index] = 2 * from[index];
}

static const Operator twice = {
    API_VERSION, create_kernel, get_name, get_provider, get_type, get_count, get_type, get_count, compute, destroy_kernel,
    get_default, get_default, get_default, {0},
};

void *RegisterCustomOps(void *options, const ApiBase *base)
{
    static void *domain;
    void *problem = NULL;
    api = (Api)base->get_api(API_VERSION);
    if (domain == NULL) {
        problem = api[CREATE_CUSTOM_OP_DOMAIN]((void *)"fastpipe.test", &domain);
        if (problem == NULL)
            problem = api[CUSTOM_OP_DOMAIN_ADD](domain, &twice);
    }
    return problem ? problem : api[ADD_CUSTOM_OP_DOMAIN](options, domain);
}
