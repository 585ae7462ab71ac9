/* Use rnnfast from a compiled Python package without linking it. In C:
 *
 *     static const rnnfast_api *api;
 *     ... in the module's PyInit function or exec slot: if (!(api = rnnfast_import())) return NULL;
 *
 * In Cython: `from rnnfast cimport rnnfast_import`. rnnfast.get_include() is the folder of this file. rnnfast.h documents the functions;
 * this header is separate because it needs Python.h.
 */
#ifndef RNNFAST_PYTHON_H
#define RNNFAST_PYTHON_H

#include <Python.h>

#include <stdint.h>

#include "rnnfast.h"

#define RNNFAST_CAPSULE "rnnfast._core.api"

/* Returns the functions of the installed rnnfast, valid as long as the process. Returns NULL with an ImportError if they are unavailable,
 * or if this module was compiled against an incompatible version. */
static inline const rnnfast_api *rnnfast_import(void)
{
    const char *fix = "compile the module against it, or install another version of rnnfast";
    const rnnfast_api *api = (const rnnfast_api *)PyCapsule_Import(RNNFAST_CAPSULE, 0);
    if (!api) {
        if (!PyErr_ExceptionMatches(PyExc_ImportError))
            PyErr_SetString(PyExc_ImportError, "the installed rnnfast has no C interface: install a newer version");
        return NULL;
    }
    if (api->abi != RNNFAST_ABI) {
        PyErr_Format(PyExc_ImportError,
                     "this module was compiled for version %d of rnnfast's C interface, but the installed rnnfast has version %zu: %s",
                     RNNFAST_ABI, api->abi, fix);
        return NULL;
    }
    const struct {
        const char *name;
        size_t least, most, found;
    } checks[] = {
        {"rnnfast_api", sizeof(rnnfast_api), SIZE_MAX, api->api},
        {"rnnfast_table", sizeof(rnnfast_table), SIZE_MAX, api->table},
        {"rnnfast_cell_info", sizeof(rnnfast_cell_info), SIZE_MAX, api->cell_info},
        {"rnnfast_cell", RNNFAST_CELLS, SIZE_MAX, api->cells},
        {"rnnfast_function", RNNFAST_ACTIVATIONS, SIZE_MAX, api->functions},
        {"rnnfast_stack", sizeof(rnnfast_stack), sizeof(rnnfast_stack), api->stack},
        {"rnnfast_problem", sizeof(rnnfast_problem), sizeof(rnnfast_problem), api->problem},
        {"rnnfast_sizes", sizeof(rnnfast_sizes), sizeof(rnnfast_sizes), api->sizes},
        {"rnnfast_order", sizeof(rnnfast_order), sizeof(rnnfast_order), api->order},
        {"rnnfast_linear", sizeof(rnnfast_linear), sizeof(rnnfast_linear), api->linear},
        {"rnnfast_pattern", sizeof(rnnfast_pattern), sizeof(rnnfast_pattern), api->pattern},
        {"rnnfast_step", sizeof(rnnfast_step), sizeof(rnnfast_step), api->api < sizeof(rnnfast_api) ? 0 : api->step},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (checks[i].found < checks[i].least || checks[i].found > checks[i].most) {
            PyErr_Format(PyExc_ImportError,
                         "%s has size %zu in the rnnfast that this module was compiled against, but %zu in the installed one: %s",
                         checks[i].name, checks[i].least, checks[i].found, fix);
            return NULL;
        }
    return api;
}

#endif
