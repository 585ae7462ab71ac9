"""``rnnfast info``: the instruction set, threads and build that rnnfast uses on this machine, and why."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

import rnnfast
from rnnfast import _core, functional

# The CPU features that an instruction set requires, as Linux names them. base and scalar run everywhere.
NEEDS = {"avx512": ("avx512f", "avx512vl", "avx512dq", "avx512bw"), "avx2": ("avx2", "fma")}
UNKNOWN = "unknown"


def configure(parser: argparse.ArgumentParser) -> None:
    """Show the instruction set and the number of threads that rnnfast uses on this machine, and why; the caches of
    the CPU; and where the compiled extension is and how it was built. RNNFAST_ISA and RNNFAST_NUM_THREADS in the
    environment change the first two.

    Examples:
      rnnfast info
      rnnfast info --json
    """
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    facts = gather()
    print(json.dumps(facts, indent=2) if arguments.json else describe(facts))
    return 0


def gather() -> dict[str, Any]:
    """Collect what the command shows; None for values that the system does not report."""
    model, features = processor()
    return {
        "version": rnnfast.__version__,
        "instruction_set": {
            "used": _core.get_default_isa(),
            "available": rnnfast.isas(),
            "RNNFAST_ISA": os.environ.get("RNNFAST_ISA") or None,
        },
        "cpu": {
            "model": model,
            "features": None
            if features is None
            else [name for names in NEEDS.values() for name in names if name in features],
        },
        "threads": {
            "used": rnnfast.get_num_threads(),
            "limits": functional.thread_limits(),
            "invalid": invalid_variables(),
        },
        "caches": caches(),
        "build": {
            "compiler": _core.COMPILER,
            "interface": _core.ABI,
            "extension": _core.__file__,
            "numpy": np.__version__,
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "platform": f"{sys.platform} {platform.machine()}",
        },
    }


def invalid_variables() -> dict[str, str]:
    """Return the variables for the number of threads whose values are not numbers; they are ignored."""
    names = {"RNNFAST_NUM_THREADS", "OMP_NUM_THREADS"} - functional.thread_limits().keys()
    return {name: os.environ[name] for name in sorted(names) if os.environ.get(name)}


def processor() -> tuple[str | None, set[str] | None]:
    """Return the model and the features of the CPU. The features are None except on Linux for x86-64."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None, None
    model, flags = (re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE) for name in ("model name", "flags"))
    return model and model[1].strip(), set(flags[1].split()) if flags else None


def caches(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> list[dict[str, Any]] | None:
    """Return the data caches of the first CPU, L1 first: level, bytes, and how many CPUs share each."""
    found = []
    for index in sorted(Path(folder).glob("index*")):
        try:
            names = ("level", "type", "size", "shared_cpu_list")
            level, kind, size, shared = ((index / name).read_text(encoding="ascii").strip() for name in names)
            number, unit = re.fullmatch(r"(\d+)([KMG]?)", size).groups()  # type: ignore[union-attr]
        except (OSError, AttributeError):
            continue
        if kind != "Instruction":
            nbytes = int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
            found.append({"level": int(level), "bytes": nbytes, "shared_by": _cpus_in(shared)})
    return found or None


def _cpus_in(spans: str) -> int:
    """Count the CPUs in a list such as 0-3,8."""
    ends = [list(map(int, span.split("-"))) for span in spans.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


def describe(facts: dict[str, Any]) -> str:
    isa, cpu, threads, build = (facts[name] for name in ("instruction_set", "cpu", "threads", "build"))
    lines = {
        "instruction set": why_isa(isa, cpu),
        "CPU": [cpu["model"] or UNKNOWN, f"features used by rnnfast: {listed(cpu['features'])}"],
        "threads": why_threads(threads),
        "caches": [", ".join(map(describe_cache, facts["caches"] or [])) or UNKNOWN],
        "extension": [build["extension"], f"built with {build['compiler']}, C interface version {build['interface']}"],
        "runs on": [f"{build['python']}, NumPy {build['numpy']}, {build['platform']}"],
    }
    rows = [f"rnnfast {facts['version']}"]
    for name, texts in lines.items():
        rows += [f"{name if i == 0 else '':17}{text}" for i, text in enumerate(texts)]
    return "\n".join(rows)


def listed(names: list[str] | None) -> str:
    return UNKNOWN if names is None else ", ".join(names) or "none"


def why_isa(isa: dict[str, Any], cpu: dict[str, Any]) -> list[str]:
    used, available = isa["used"], isa["available"]
    if isa["RNNFAST_ISA"]:
        lines = [f"{used}, set by RNNFAST_ISA (available: {', '.join(available)})"]
    else:
        lines = [f"{used} (best of {', '.join(available)})"]
    for name, needs in NEEDS.items():
        if name not in available and cpu["features"] is not None:
            lacks = [need for need in needs if need not in cpu["features"]]
            reason = f"the CPU lacks {', '.join(lacks)}" if lacks else "it was not compiled, or the system disables it"
            lines.append(f"{name} is not available: {reason}")
    return lines


def why_threads(threads: dict[str, Any]) -> list[str]:
    words = {
        "processors": "cores available to this process",
        "cgroup quota": "CPU quota of the container",
        "RNNFAST_NUM_THREADS": "RNNFAST_NUM_THREADS",
        "OMP_NUM_THREADS": "OMP_NUM_THREADS",
    }
    limits, invalid = threads["limits"], threads["invalid"]
    found = [f"{words[name]} ({limits[name]}{', taken as 1' * (limits[name] < 1)})" for name in words if name in limits]
    unset = [text for name, text in words.items() if name not in limits and name not in invalid]
    return [
        f"{threads['used']}, the smallest of: {', '.join(found)}",
        *([f"not set: {', '.join(unset)}"] if unset else []),
        *(f"{name} is {value!r}, which is not a number, and is ignored" for name, value in invalid.items()),
    ]


def describe_cache(cache: dict[str, Any]) -> str:
    scale, unit = (20, "MiB") if cache["bytes"] >= 1 << 20 else (10, "KiB")
    shared = f" shared by {cache['shared_by']} CPUs" if cache["shared_by"] > 1 else ""
    return f"L{cache['level']} {cache['bytes'] >> scale} {unit}{shared}"
