"""``python -m rnnfast info``: what rnnfast is on this machine, and why."""

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

# What the processor must have for an instruction set, by the names of Linux. base and scalar run on every one.
NEEDS = {"avx512": ("avx512f", "avx512vl", "avx512dq", "avx512bw"), "avx2": ("avx2", "fma")}
UNKNOWN = "unknown"


def configure(parser: argparse.ArgumentParser) -> None:
    """Tell which instruction set rnnfast uses on this machine and how many threads, and why; the caches of the CPU;
    and what was compiled, how, and where it lies.

    Examples:
      python -m rnnfast info
      python -m rnnfast info --json
      RNNFAST_ISA=base RNNFAST_NUM_THREADS=1 python -m rnnfast info
    """
    parser.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    facts = gather()
    print(json.dumps(facts, indent=2) if arguments.json else describe(facts))
    return 0


def gather() -> dict[str, Any]:
    """All that the command tells; None where the system does not say."""
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
            "not_numbers": not_numbers(),
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


def not_numbers() -> dict[str, str]:
    """The variables of the number of threads that are set to something else, which is passed over."""
    names = {"RNNFAST_NUM_THREADS", "OMP_NUM_THREADS"} - functional.thread_limits().keys()
    return {name: os.environ[name] for name in sorted(names) if os.environ.get(name)}


def processor() -> tuple[str | None, set[str] | None]:
    """The model and the features of the CPU, None where the system does not say: Linux does, on x86-64."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None, None
    model, flags = (re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE) for name in ("model name", "flags"))
    return model and model[1].strip(), set(flags[1].split()) if flags else None


def caches(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> list[dict[str, Any]] | None:
    """The caches for data of the first CPU, nearest first: level, bytes, and how many CPUs share it."""
    found = []
    for index in sorted(Path(folder).glob("index*")):
        try:
            level, kind, size, shared = (
                (index / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size", "shared_cpu_list")
            )
            number, unit = re.fullmatch(r"(\d+)([KMG]?)", size).groups()  # type: ignore[union-attr]
        except (OSError, AttributeError):
            continue
        if kind != "Instruction":
            nbytes = int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
            found.append({"level": int(level), "bytes": nbytes, "shared_by": _members(shared)})
    return found or None


def _members(spans: str) -> int:
    """How many CPUs a list such as 0-3,8 names."""
    ends = [list(map(int, span.split("-"))) for span in spans.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


def describe(facts: dict[str, Any]) -> str:
    isa, cpu, threads, build = (facts[name] for name in ("instruction_set", "cpu", "threads", "build"))
    lines = {
        "instruction set": why_isa(isa, cpu),
        "CPU": [cpu["model"] or UNKNOWN, f"features that rnnfast can use: {listed(cpu['features'])}"],
        "threads": why_threads(threads),
        "caches": [", ".join(map(describe_cache, facts["caches"] or [])) or UNKNOWN],
        "compiled part": [
            build["extension"],
            f"by {build['compiler']}; version {build['interface']} of the C interface",
        ],
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
    asked = isa["RNNFAST_ISA"]
    lines = [
        f"{used}, {'as RNNFAST_ISA says' if asked else 'the best that runs here'}; there are {', '.join(available)}"
    ]
    for name, needs in NEEDS.items():
        if name not in available and cpu["features"] is not None:
            lacks = [need for need in needs if need not in cpu["features"]]
            reason = f"this CPU lacks {', '.join(lacks)}" if lacks else "it was not compiled, or the system forbids it"
            lines.append(f"not {name}: {reason}")
    return lines


def why_threads(threads: dict[str, Any]) -> list[str]:
    words = {
        "processors": "the processors that this process may use",
        "cgroup quota": "the quota of its container",
        "RNNFAST_NUM_THREADS": "RNNFAST_NUM_THREADS",
        "OMP_NUM_THREADS": "OMP_NUM_THREADS",
    }
    limits, *others = (
        {name: text for name, text in words.items() if (name in threads["limits"]) == there} for there in (True, False)
    )
    told = ", ".join(
        f"{n} by {text}" + (" (taken as 1)" if n < 1 else "")
        for n, text in ((threads["limits"][name], text) for name, text in limits.items())
    )
    wrong = threads["not_numbers"]
    unset = {name: text for name, text in others[0].items() if name not in wrong}
    return [
        f"{threads['used']}, the least of: {told}",
        *([f"no limit by {', '.join(unset.values())}"] if unset else []),
        *(f"{name} is {value!r}, which is no number, and is passed over" for name, value in wrong.items()),
    ]


def describe_cache(cache: dict[str, Any]) -> str:
    scale, unit = (20, "MiB") if cache["bytes"] >= 1 << 20 else (10, "KiB")
    shared = f" for {cache['shared_by']} CPUs" if cache["shared_by"] > 1 else ""
    return f"L{cache['level']} {cache['bytes'] >> scale} {unit}{shared}"
