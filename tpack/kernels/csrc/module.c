/* tpack.kernels._native: addresses and sizes in, work done. The Python side has checked every argument.
 *
 * Only the limited API is used, so one build serves every later Python. All arguments are positional
 * integers: reading thirteen of them costs less than parsing one keyword.
 */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdatomic.h>

#include "ops.h"
#include "parallel.h"

/* below this many weights a call is over before another thread could use the lock */
enum { LONG_CALL = 1 << 17 };

static _Atomic(const tp_kernels *) current;

static const tp_kernels *kernels(void) { return atomic_load_explicit(&current, memory_order_relaxed); }

static int read_arguments(PyObject *const *arguments, Py_ssize_t count, Py_ssize_t expected, size_t *values) {
    if (count != expected) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        values[i] = PyLong_AsSize_t(arguments[i]);
        if (values[i] == (size_t)-1 && PyErr_Occurred()) return 0;
    }
    return 1;
}

static void *pointer(size_t address) { return (void *)(uintptr_t)address; }
static tp_floats floats(size_t address, size_t dtype) {
    return (tp_floats){.data = pointer(address), .dtype = (tp_dtype)dtype};
}

/* An operation with the lock released where that can matter. */
#define RUN(result, weights, call)               \
    do {                                         \
        if ((weights) < LONG_CALL) {             \
            result = call;                       \
        } else {                                 \
            PyThreadState *state = PyEval_SaveThread(); \
            result = call;                       \
            PyEval_RestoreThread(state);         \
        }                                        \
    } while (0)

static PyObject *answer(ptrdiff_t result) {
    if (result == TP_BAD_CODE) return PyErr_Format(PyExc_ValueError, "packed: a row holds code 3, expected 0, 1 or 2.");
    return result == TP_NO_MEMORY ? PyErr_NoMemory() : PyLong_FromSsize_t(result);
}

#define FUNCTION(name, expected)                                                             \
    static PyObject *name(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {  \
        size_t a[expected];                                                                  \
        ptrdiff_t result;                                                                    \
        (void)module;                                                                        \
        if (!read_arguments(arguments, count, expected, a)) return NULL;

#define END             \
    return answer(result); \
    }

FUNCTION(pack, 6)
    RUN(result, a[2] * a[3], tp_pack(kernels(), floats(a[0], a[1]), a[2], a[3], pointer(a[4]), (unsigned)a[5]));
END

FUNCTION(unpack, 6)
    tp_weight weight = {.packed = pointer(a[0]), .rows = a[1], .columns = a[2]};
    RUN(result, a[1] * a[2], tp_dequantize(kernels(), &weight, (tp_dtype)a[4], pointer(a[3]), (unsigned)a[5]));
END

FUNCTION(dequantize, 9)
    tp_weight weight = {pointer(a[0]), a[1], a[2], a[5], floats(a[3], a[4])};
    RUN(result, a[1] * a[2], tp_dequantize(kernels(), &weight, (tp_dtype)a[7], pointer(a[6]), (unsigned)a[8]));
END

FUNCTION(embedding, 11)
    tp_weight weight = {pointer(a[2]), a[3], a[4], a[7], floats(a[5], a[6])};
    RUN(result, a[1] * a[4], tp_embedding(kernels(), &weight, pointer(a[0]), a[1], (tp_dtype)a[9], pointer(a[8]), (unsigned)a[10]));
END

FUNCTION(survey, 9)
    RUN(result, a[2] * a[3], tp_survey(kernels(), floats(a[0], a[1]), a[2], a[3], a[4], pointer(a[5]), pointer(a[6]), pointer(a[7]), (unsigned)a[8]));
END

FUNCTION(column_sizes, 6)
    RUN(result, a[2] * a[3], tp_column_sizes(kernels(), floats(a[0], a[1]), a[2], a[3], pointer(a[4]), (unsigned)a[5]));
END

FUNCTION(quantize, 10)
    RUN(result, a[2] * a[3], tp_quantize(kernels(), floats(a[0], a[1]), a[2], a[3], pointer(a[4]), pointer(a[5]), a[6], pointer(a[7]), pointer(a[8]), (unsigned)a[9]));
END

/* x, dtype, tokens | packed, rows, columns | scale, dtype, group | bias, dtype | out | threads */
#define PRODUCT(name)                                                                                   \
    FUNCTION(name, 13)                                                                                  \
        tp_product product = {floats(a[0], a[1]), a[2], floats(a[9], a[10]), (tp_dtype)a[1], pointer(a[11])};           \
        tp_weight weight = {pointer(a[3]), a[4], a[5], a[8], floats(a[6], a[7])};                       \
        RUN(result, a[2] * a[4] * a[5], tp_##name(kernels(), &product, &weight, (unsigned)a[12]));      \
    END
PRODUCT(linear)
PRODUCT(bit_linear)
PRODUCT(linear_columns)
PRODUCT(bit_linear_columns)

static PyObject *read_bytes(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    size_t a[3];
    uint64_t sum;
    (void)module;
    if (!read_arguments(arguments, count, 3, a)) return NULL;
    RUN(sum, a[1], tp_read_bytes(kernels(), pointer(a[0]), a[1], (unsigned)a[2]));
    return PyLong_FromUnsignedLongLong(sum);
}

static PyObject *variants(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    PyObject *list = PyList_New(0);
    for (const char *const *name = tp_names(); list && *name; name++) {
        PyObject *text = PyUnicode_FromString(*name);
        if (!text || PyList_Append(list, text) < 0) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    return list;
}

static PyObject *variant(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyUnicode_FromString(kernels()->name);
}

static PyObject *runtime(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyUnicode_FromString(tp_runtime());
}

static PyObject *select_variant(PyObject *module, PyObject *name) {
    (void)module;
    PyObject *bytes = PyUnicode_AsUTF8String(name);
    if (!bytes) return NULL;
    const tp_kernels *found = tp_find(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    if (found) atomic_store(&current, found);
    return PyBool_FromLong(found != NULL);
}

#define FAST(name, text) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, text}
#define PRODUCT_TEXT "(x, x_dtype, tokens, packed, rows, columns, scale, scale_dtype, group, bias, bias_dtype, out, threads)"

static PyMethodDef methods[] = {
    FAST(pack, "(source, dtype, rows, columns, packed, threads) -> first bad index or -1"),
    FAST(unpack, "(packed, rows, columns, out, dtype, threads) -> first bad index or -1"),
    FAST(dequantize, "(packed, rows, columns, scale, scale_dtype, group, out, dtype, threads) -> first bad index or -1"),
    FAST(embedding, "(indices, count, packed, rows, columns, scale, scale_dtype, group, out, dtype, threads) -> first bad position or -1"),
    FAST(survey, "(source, dtype, rows, columns, group, sums or 0, maxima or 0, minima or 0, threads) -> -1"),
    FAST(column_sizes, "(source, dtype, rows, columns, sizes, threads) -> 0 where a column has two, else -1"),
    FAST(quantize, "(source, dtype, rows, columns, thresholds, scales or 0, group, packed, squares or 0, threads) -> first index that differs or -1"),
    FAST(linear, PRODUCT_TEXT),
    FAST(bit_linear, PRODUCT_TEXT),
    FAST(linear_columns, PRODUCT_TEXT),
    FAST(bit_linear_columns, PRODUCT_TEXT),
    FAST(read_bytes, "(data, count, threads) -> some sum of the bytes"),
    {"variants", variants, METH_NOARGS, "Those that run on this machine, best first."},
    {"variant", variant, METH_NOARGS, "The one in use."},
    {"runtime", runtime, METH_NOARGS, "Where threads come from: 'openmp' (torch's pool) or 'pthread'."},
    {"select", select_variant, METH_O, "Use the named variant; False if it does not run here."},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) {
    (void)module;
    static atomic_int started;
    if (!atomic_exchange(&started, 1)) {
        tp_parallel_init();
        atomic_store(&current, tp_best());
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)start}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "Kernels on raw addresses; use tpack.kernels, which checks its arguments.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
