/* How a compiled Python package comes by rnnfast without being linked with it: in C
 *
 *     static const rnnfast_api *api;
 *     ... in the module's PyInit function or exec slot: if (!(api = rnnfast_import())) return NULL;
 *
 * and in Cython `from rnnfast cimport rnnfast_import`. rnnfast.get_include() is the folder of this file. rnnfast.h says all else; this
 * is kept apart from it, as it takes Python.h.
 */
#ifndef RNNFAST_PYTHON_H
#define RNNFAST_PYTHON_H

#include <Python.h>

#include <stdint.h>

#include "rnnfast.h"

#define RNNFAST_CAPSULE "rnnfast._core.api"

/* The functions of the rnnfast that is installed, for as long as the process lasts. NULL with an ImportError where there is none, or
 * one that this module was not compiled for. */
static inline const rnnfast_api *rnnfast_import(void)
{
    const char *mend = "compile the module against it, or install another rnnfast";
    const rnnfast_api *api = (const rnnfast_api *)PyCapsule_Import(RNNFAST_CAPSULE, 0);
    if (!api) {
        if (!PyErr_ExceptionMatches(PyExc_ImportError))
            PyErr_SetString(PyExc_ImportError, "the rnnfast that is installed has no C interface: install a newer one");
        return NULL;
    }
    if (api->abi != RNNFAST_ABI) {
        PyErr_Format(PyExc_ImportError,
                     "this module was compiled for version %d of rnnfast's C interface, but what is installed has %zu: %s", RNNFAST_ABI,
                     api->abi, mend);
        return NULL;
    }
    const struct {
        const char *name;
        size_t least, most, found;
    } checks[] = {
        {"rnnfast_api", sizeof(rnnfast_api), SIZE_MAX, api->api},
        {"rnnfast_table", sizeof(rnnfast_table), SIZE_MAX, api->table},
        {"rnnfast_cell", RNNFAST_CELLS, SIZE_MAX, api->cells},
        {"rnnfast_function", RNNFAST_ACTIVATIONS, SIZE_MAX, api->functions},
        {"rnnfast_stack", sizeof(rnnfast_stack), sizeof(rnnfast_stack), api->stack},
        {"rnnfast_problem", sizeof(rnnfast_problem), sizeof(rnnfast_problem), api->problem},
        {"rnnfast_sizes", sizeof(rnnfast_sizes), sizeof(rnnfast_sizes), api->sizes},
        {"rnnfast_order", sizeof(rnnfast_order), sizeof(rnnfast_order), api->order},
        {"rnnfast_linear", sizeof(rnnfast_linear), sizeof(rnnfast_linear), api->linear},
        {"rnnfast_pattern", sizeof(rnnfast_pattern), sizeof(rnnfast_pattern), api->pattern},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (checks[i].found < checks[i].least || checks[i].found > checks[i].most) {
            PyErr_Format(PyExc_ImportError, "%s has size %zu where this module was compiled, but %zu in the rnnfast that is installed: %s",
                         checks[i].name, checks[i].least, checks[i].found, mend);
            return NULL;
        }
    return api;
}

#endif
