"""``python -m rnnfast``: what its commands say, compute and write, and how they end."""

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rnnfast
from rnnfast import __main__, _core, commands, functional, reference
from rnnfast.commands import bench, info, series, text

main = __main__.main
TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(60))
SMALL = ["--hidden", "16", "--embedding", "4", "--batch", "3", "--window", "8", "--epochs", "2"]


def python(*arguments, code=None, **environment):
    """What comes of ``python -m rnnfast``, or of other code, in a process of its own."""
    start = ["-m", "rnnfast"] if code is None else ["-c", code]
    inherited = {
        name: value for name, value in os.environ.items() if "NUM_THREADS" not in name and name != "RNNFAST_ISA"
    }
    return subprocess.run(
        [sys.executable, "-P", *start, *map(str, arguments)],
        env={**inherited, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )


def failure(capsys, *arguments):
    """What a command says that cannot run: one line."""
    assert main([str(argument) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m rnnfast: ")
    return line


# ------------------------------------------------------------------------------------------------------ the program


def commands_of(parser, words=()):
    """The words of all commands, found as a reader of --help finds them."""
    for action in parser._actions:
        if hasattr(action, "_name_parser_map"):
            for name, below in action._name_parser_map.items():
                yield from commands_of(below, (*words, name))
            return
    yield words


@pytest.mark.parametrize("words", list(commands_of(__main__.make_parser())))
def test_help_explains_a_command_with_examples_that_parse(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    said = capsys.readouterr().out
    examples = said.partition("\nExamples:\n")[2].splitlines()
    assert any(line.startswith(f"  python -m rnnfast {' '.join(words)}") for line in examples)
    for line in examples:
        assert __main__.make_parser().parse_args(shlex.split(line.partition(" -m rnnfast ")[2])).run


def test_help_of_the_program_names_all_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    for words in commands_of(__main__.make_parser()):
        assert f"\n    {words[0]} " in said


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rnnfast {rnnfast.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "required: KIND"),
        (["train", "text", "x"], "required: -o/--output"),
        (["bench", "--H", "0"], "must be a whole number, 1 or more, not 0"),
        (["bench", "--H", "1_000"], "must be a whole number, 1 or more, not 1_000"),
        (["bench", "--cell", "elman"], "invalid choice: 'elman'"),
        (["train", "text", "x", "-o", "y", "--lr", "nan"], "must be a number above 0, not nan"),
        (["sample", "x", "--seed", "-1"], "must be a whole number, 0 or more, not -1"),
    ],
)
def test_options_that_cannot_be(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_it_is_used():
    heavy = "{'torch', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn', 'pandas', 'tqdm'}"
    code = f"import sys, rnnfast.__main__ as m; m.make_parser(); print({heavy} & sys.modules.keys())"
    assert python(code=code).stdout == "set()\n"
    assert python(code="import sys, rnnfast; print('rnnfast.commands' in sys.modules)").stdout == "False\n"


def test_memory_that_is_not_there(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text(TEXT)
    line = failure(capsys, "train", "text", path, "-o", tmp_path / "model", *SMALL, "--hidden", 10**6)
    assert "not enough memory" in line


def test_files_of_models_appear_complete_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model"
    commands.write(str(path), {"kind": "text"}, {"a": np.ones(2)})
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands.os, "fsync", fail)
    with pytest.raises(commands.CannotRun, match=r"cannot write .*model: No space left"):
        commands.write(str(path), {"kind": "text"}, {"a": np.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------------------------------------------------------- info


def test_info_tells_what_is_so():
    result = python("info", "--json", RNNFAST_NUM_THREADS="1")
    facts = json.loads(result.stdout)
    assert facts["version"] == rnnfast.__version__
    assert facts["instruction_set"] == {"used": rnnfast.isas()[0], "available": rnnfast.isas(), "RNNFAST_ISA": None}
    assert facts["threads"]["used"] == facts["threads"]["limits"]["RNNFAST_NUM_THREADS"] == 1
    assert facts["build"]["extension"] == _core.__file__
    assert facts["build"]["numpy"] == np.__version__
    header = Path(rnnfast.get_include(), "rnnfast.h").read_text()
    assert f"#define RNNFAST_ABI {facts['build']['interface']}\n" in header
    told = python("info").stdout
    for fact in (rnnfast.__version__, rnnfast.isas()[0], _core.__file__, np.__version__, _core.COMPILER):
        assert fact in told


def test_info_says_where_the_instruction_set_and_the_threads_come_from():
    told = python("info", RNNFAST_ISA="scalar", OMP_NUM_THREADS="1").stdout
    assert "scalar, as RNNFAST_ISA says" in told
    assert "1 by OMP_NUM_THREADS" in told
    assert "no limit by" in told.partition("RNNFAST_NUM_THREADS")[0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors")
def test_info_heeds_the_processors_that_the_process_may_use():
    first = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{first}}}); from rnnfast.__main__ import main; main(['info', '--json'])"
    )
    assert json.loads(python(code=code).stdout)["threads"] == {
        "used": 1,
        "limits": {"processors": 1},
        "not_numbers": {},
    }


def test_least_limit_is_the_number_of_threads(monkeypatch):
    monkeypatch.setenv("RNNFAST_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    limits = functional.thread_limits()
    assert (limits["RNNFAST_NUM_THREADS"], limits["OMP_NUM_THREADS"]) == (7, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert "OMP_NUM_THREADS" not in functional.thread_limits()


def test_caches_as_linux_tells_them(tmp_path):
    assert info.caches(str(tmp_path)) is None
    for i, row in enumerate(["1 Data 48K 0", "1 Instruction 32K 0", "2 Unified 2048K 0,8", "3 Unified 33M 0-3,8-11"]):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), row.split(), strict=True):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "index9").mkdir()  # tells nothing
    found = info.caches(str(tmp_path))
    assert [(cache["level"], cache["bytes"], cache["shared_by"]) for cache in found] == [
        (1, 48 << 10, 1),
        (2, 2 << 20, 2),
        (3, 33 << 20, 8),
    ]
    assert [info.describe_cache(cache) for cache in found] == [
        "L1 48 KiB",
        "L2 2 MiB for 2 CPUs",
        "L3 33 MiB for 8 CPUs",
    ]


def test_info_where_the_system_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "Path", lambda _: tmp_path / "missing")
    facts = info.gather()
    assert facts["cpu"]["features"] is None
    assert facts["caches"] is None
    assert info.describe(facts).count("unknown") >= 2


def test_info_says_what_a_cpu_lacks():
    isa = {"used": "base", "available": ["base", "scalar"], "RNNFAST_ISA": None}
    _, avx512, avx2 = info.why_isa(isa, {"features": ["avx2", "avx512f", "fma"]})
    assert avx512 == "not avx512: this CPU lacks avx512vl, avx512dq, avx512bw"
    assert "not compiled" in avx2


# ------------------------------------------------------------------------------------------------------------- bench


CASES = [
    bench.Case(cell, 5, 3, 4, 6, layers, bidirectional, mode, dtype)
    for cell in bench.CELLS
    for layers, bidirectional in [(1, False), (2, True)]
    for mode in bench.MODES
    for dtype in bench.TOLERANCE
]


@pytest.mark.parametrize("name", bench.ENGINES)
def test_every_engine_gives_the_answer_of_the_reference(name, threads):
    threads(1)
    if name not in ("rnnfast", "reference"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    for case in CASES:
        call, answer = bench.with_reference(case, 1, np.float64)
        expected = answer(call())
        assert len(expected) == 1 + (2 if case.cell == "lstm" else 1) + (
            0 if case.mode == "inference" else 1 + len(case.layer().parameters)
        )
        try:
            call, answer = bench.ENGINES[name](case, 1)
        except commands.CannotRun:
            assert name == "onnxruntime"
            continue
        assert bench.disagreement(answer(call()), expected, case.dtype) is None, case


def test_wrong_answers_are_seen():
    right = {"y": np.array([1.0, -2.0]), "dx": np.zeros(3)}
    assert bench.disagreement(right, right, "float64") is None
    assert bench.disagreement({**right, "y": right["y"] + 1e-3}, right, "float32") == (
        "its y is wrong by 0.0005 of the largest number"
    )
    assert bench.disagreement({**right, "y": right["y"] + 1e-6}, right, "float32") is None
    assert bench.disagreement({**right, "y": right["y"] + 1e-6}, right, "float64")
    assert "y is wrong by nan" in bench.disagreement({**right, "y": right["y"] * np.nan}, right, "float64")
    assert "dx is wrong" in bench.disagreement({**right, "dx": np.full(3, 1e-9)}, right, "float64")
    assert "shape (2, 1)" in bench.disagreement({**right, "y": right["y"][:, None]}, right, "float64")
    assert "it gives y in place of y, dx" in bench.disagreement({"y": right["y"]}, right, "float64")


class Fake:
    """An engine in this process; it takes so many seconds, and must not be timed where that is None."""

    def __init__(self, seconds, spoil=0.0, refuse=None):
        self.seconds, self.spoil, self.refuse, self.turns = seconds, spoil, refuse, 0

    def ask(self, what):
        if isinstance(what, bench.Case):
            call, answer = bench.with_reference(what, 1)
            return self.refuse or {name: array + self.spoil for name, array in answer(call()).items()}
        assert self.seconds is not None, "it was timed"
        self.turns += 1
        return self.seconds


@pytest.fixture
def fakes(monkeypatch):
    """Engines whose times are known, in place of the real ones."""
    engines = {
        "rnnfast": Fake(1e-6),
        "reference": Fake(4e-6),
        "torch": Fake(None, spoil=0.01),
        "onnxruntime": Fake(None, refuse="it has a day off"),
        "NumPy's product": Fake(0.5),
        "rnnfast's product": Fake(0.25),
    }

    @contextlib.contextmanager
    def workers(names, _):
        yield {name: engines[name] for name in names}

    monkeypatch.setattr(bench, "workers", workers)
    monkeypatch.setattr(bench, "PAUSE", 0)
    monkeypatch.setattr(bench, "installed", lambda: dict.fromkeys(bench.ENGINES, "1.0"))
    return engines


def test_wrong_answers_are_not_timed_and_end_with_status_1(fakes, capsys):
    assert main(["bench", "--T", "5", "--N", "2", "--I", "3", "--H", "4", "--rounds", "3"]) == 1
    table = capsys.readouterr().out
    for mode, factor in [("inference", 1), ("training", 3)]:
        [row] = [line for line in table.splitlines() if line.startswith(f"lstm {mode} T=5 N=2 I=3 H=4 ")]
        assert row.split()[6:8] == ["1", "µs"]
        assert row.split()[8:11] == ["4.00x", "WRONG", "-"]
        gflops = factor * 2 * 5 * 2 * 4 * 4 * (3 + 4) / 1e-6 / 1e9
        limit = 2 * 512**3 / 0.25 / 1e9
        assert row.split()[11:] == [f"{gflops:.3g}", f"{gflops / limit:.0%}"]
    assert "torch was not timed: its y is wrong by" in table
    assert table.count("onnxruntime was not timed: it has a day off") == 1
    assert fakes["rnnfast"].turns == 2 * 3


def test_right_answers_end_with_status_0(fakes):
    fakes["torch"].refuse = "it is at lunch"
    assert main(["bench", "--T", "2", "--H", "3", "--rounds", "1"]) == 0


def test_rnnfast_itself_is_not_spared(fakes, capsys):
    fakes["rnnfast"].spoil, fakes["rnnfast"].seconds = 1e-3, None
    assert main(["bench", "--T", "2", "--H", "3", "--mode", "inference", "--rounds", "1"]) == 1
    row = capsys.readouterr().out.splitlines()[4]
    assert row.split()[6:] == ["WRONG", "4", "µs", "WRONG", "-"]


def test_bench_in_processes_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "installed", lambda: {"rnnfast": "1"})
    before = dict(os.environ)
    path = tmp_path / "times.json"
    arguments = "bench --cell gru --T 3 --N 2 --I 4 --H 5 --layers 2 --bidirectional --dtype float64 --rounds 2 --json"
    assert main([*arguments.split(), str(path)]) == 0
    assert dict(os.environ) == before
    report = json.loads(path.read_text())
    assert [case["case"]["mode"] for case in report["cases"]] == ["inference", "training"]
    for case in report["cases"]:
        assert case["seconds"].keys() == {"rnnfast", "reference"}
        assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"].values())
        products = 3 * 2 * sum(2 * 3 * 5 * width for width in (4, 5, 2 * 5, 5))
        assert math.isclose(case["gflop"], 2e-9 * products * (3 if case["case"]["mode"] == "training" else 1))
    assert capsys.readouterr().out.count("GFLOP/s") == 3


def test_the_process_of_an_engine_knows_its_threads_and_may_fail():
    with bench.workers(["rnnfast"], 3) as started:
        worker = started["rnnfast"]
        assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
        case = bench.Case("rnn", 2, 1, 3, 4)
        assert worker.ask(case)["y"].shape == (2, 1, 4)
        assert worker.ask(case._replace(cell="elman")) == "KeyError: 'elman'"
        assert worker.ask(1e-3) > 0
        worker._process.kill()
        assert worker.ask(1e-3) == "its process came to an end"


def test_cases_that_are_chosen():
    def chosen(*arguments):
        return bench.choose(__main__.make_parser().parse_args(["bench", *arguments]))

    default = chosen()
    assert {case.cell for case in default} == set(bench.CELLS)
    assert {case.mode for case in default} == set(bench.MODES)
    assert all(case.N > 1 for case in default if case.mode == "training")
    assert {case.cell for case in chosen("--cell", "gru")} == {"gru"}
    assert {case.mode for case in chosen("--mode", "training")} == {"training"}
    assert chosen("--H", "7", "--bidirectional", "--mode", "inference") == [bench.Case("lstm", 64, 16, 128, 7, 1, True)]
    assert [case.mode for case in chosen("--N", "1")] == ["inference", "training"]


def test_timed_counts_calls(monkeypatch):
    clock = iter([0.0, 0.002, 10.0, 10.006])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    calls = []
    assert bench.timed(lambda: calls.append(1), 0.007) == pytest.approx(0.002)
    assert len(calls) == 1 + 3


@pytest.mark.parametrize(
    ("seconds", "told"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (5e-8, "50 ns")]
)
def test_duration(seconds, told):
    assert bench.duration(seconds) == told


@pytest.mark.usefixtures("fakes")
def test_bench_draws(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "times.png"
    main(["bench", "--H", "3", "--T", "2", "--rounds", "1", "--plot", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "--rounds", "1", "--T", "2", "--plot", str(tmp_path / "times.odd")]) == 2


def test_bench_that_cannot_write_says_so_before_it_begins(fakes, tmp_path, capsys, monkeypatch):
    assert "cannot write" in failure(capsys, "bench", "--json", tmp_path / "missing" / "times.json")
    assert "it is a folder" in failure(capsys, "bench", "--plot", tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in failure(capsys, "bench", "--plot", tmp_path / "times.png")
    assert fakes["rnnfast"].turns == 0
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- train text, sample


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def trained(book, tmp_path, capsys):
    """A model of the book, and what was said while it was trained."""
    path = tmp_path / "book.npz"
    assert main(["train", "text", str(book), "-o", str(path), *SMALL]) == 0
    return path, capsys.readouterr()


def random_model(cell="gru", layers=1):
    return text.Model("abcde", {"cell": cell, "embedding": 3, "hidden": 6, "layers": layers}, np.random.default_rng(0))


@pytest.mark.parametrize("cell", text.CELLS)
def test_gradient_descends_in_every_parameter(cell):
    model = random_model(cell, 2)
    codes = np.random.default_rng(1).integers(5, size=(9, 2))

    def loss():
        scores, _, tape = model.forward(codes[:-1])
        return *text.softmax_cross_entropy(scores, codes[1:]), tape

    first, dscores, tape = loss()
    gradients = model.backward(tape, dscores)
    assert gradients.keys() == model.parameters.keys()
    for name, parameter in model.parameters.items():
        before = parameter.copy()
        parameter -= 0.01 * gradients[name]
        assert loss()[0] < first, name
        parameter[...] = before


def test_bits_are_those_of_the_reference():
    model = random_model("lstm")
    codes = np.random.default_rng(2).integers(5, size=(21, 3))
    own = {name: array.astype(float) for name, array in model.parameters.items()}
    recurrent = {name.partition(".")[2]: array for name, array in own.items() if name.startswith("recurrent.")}
    hidden = reference.forward("lstm", recurrent, own["embedding.weight"][codes[:-1]])[0]
    scores = hidden @ own["readout.weight"].T + own["readout.bias"]
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = -np.log2(np.take_along_axis(chances, codes[1:, :, None], 2)).mean()
    assert model.bits(codes) == pytest.approx(expected, rel=1e-5)
    assert model.bits(codes, window=7) == pytest.approx(expected, rel=1e-5)


def test_cold_sample_is_what_the_whole_model_finds_likeliest():
    model = random_model("gru", 2)
    written = "da" + "".join(model.write("da", 12, 1e-4, np.random.default_rng(0)))
    scores, _, _ = model.forward(model.encode(written, "")[:, None])
    assert written[2:] == "".join(model.characters[code] for code in scores[1:-1, 0].argmax(-1))


def test_hot_sample_is_drawn_from_the_scores():
    model = random_model()
    scores = model.forward(model.encode("a", "")[:, None])[0][-1, 0].astype(float)
    chances = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum()
    rng = np.random.default_rng(3)
    drawn = [next(iter(model.write("a", 1, 0.5, rng))) for _ in range(3000)]
    for character, chance in zip("abcde", chances, strict=True):
        assert abs(drawn.count(character) / 3000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 3000)


def test_training_learns_and_keeps_the_best_model(trained):
    path, (report, progress) = trained
    held_out = [float(line.rpartition(" ")[2]) for line in progress.splitlines()]
    assert len(held_out) == text.LOOKS
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert held_out[-1] < held_out[0]
    about, _ = commands.read(str(path), "text", "")
    assert about["bits"] == pytest.approx(min(held_out), abs=1e-3)
    assert f"{len(TEXT):,} characters, {len(set(TEXT))} different" in report
    assert f"{min(held_out):.3f} bits per character" in report


def test_later_models_that_are_worse_are_not_kept(book, tmp_path, monkeypatch):
    told = iter([3.0, 2.0, *[2.5] * text.LOOKS])
    monkeypatch.setattr(text.Model, "bits", lambda *_: next(told))
    path = tmp_path / "book.npz"
    assert main(["train", "text", str(book), "-o", str(path), *SMALL]) == 0
    assert commands.read(str(path), "text", "")[0]["bits"] == 2.0


def test_model_that_is_read_is_the_one_that_was_written(tmp_path):
    model = random_model("lstm", 2)
    model.save(str(tmp_path / "model"))
    other = text.Model.load(str(tmp_path / "model"))
    assert (other.characters, other.sizes) == (model.characters, model.sizes)
    for name, parameter in model.parameters.items():
        assert parameter.tobytes() == other.parameters[name].tobytes(), name


def test_seed_gives_the_same_model_and_text(book, trained, tmp_path, capsys):
    path, _ = trained
    assert main(["train", "text", str(book), "-o", str(tmp_path / "again"), *SMALL]) == 0
    assert main(["train", "text", str(book), "-o", str(tmp_path / "other"), *SMALL, "--seed", "1"]) == 0
    arrays = [commands.read(str(file), "text", "")[1] for file in (path, tmp_path / "again", tmp_path / "other")]
    assert all(array.tobytes() == arrays[1][name].tobytes() for name, array in arrays[0].items())
    assert any(array.tobytes() != arrays[2][name].tobytes() for name, array in arrays[0].items())

    def sample(seed):
        capsys.readouterr()
        assert main(["sample", str(path), "--length", "80", "--start", "7 times", "--seed", seed]) == 0
        return capsys.readouterr().out

    assert sample("0") == sample("0") != sample("1")
    assert sample("0").startswith("7 times")
    assert len(sample("0")) == len("7 times") + 80 + 1


def test_sample_begins_with_a_new_line_that_is_not_shown(trained, capsys):
    assert main(["sample", str(trained[0]), "--length", "0"]) == 0
    assert capsys.readouterr().out == "\n"


def test_ctrl_c_keeps_the_best_model_so_far(book, tmp_path, monkeypatch, capsys):
    class CtrlC(text.Progress):
        steps = 0

        def step(self):
            self.steps += 1
            if self.steps == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(text, "Progress", CtrlC)
    path = tmp_path / "book.npz"
    assert main(["train", "text", str(book), "-o", str(path), *SMALL, "--epochs", "50"]) == 130
    report, progress = capsys.readouterr()
    assert "Stopped by Ctrl-C. Saved to" in report
    assert len(progress.splitlines()) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(["sample", str(path), "--length", "10"]) == 0


def test_second_ctrl_c_ends_at_once(book, tmp_path, monkeypatch, capsys):
    def step(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(text.Progress, "step", step)
    assert main(["train", "text", str(book), "-o", str(tmp_path / "book.npz"), *SMALL]) == 130
    assert capsys.readouterr().err.endswith("\nStopped.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_from_outside_leaves_no_traceback(book, tmp_path):
    path = tmp_path / "book.npz"
    command = [sys.executable, "-P", "-m", "rnnfast", "train", "text", book, "-o", path, *SMALL, "--epochs", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as process:
        process.stdout.readline()
        process.stdout.readline()  # what it says before the first step
        process.send_signal(signal.SIGINT)
        report, progress = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in report + progress
    assert path.is_file() == ("Saved to" in report)


@pytest.mark.skipif(sys.platform == "win32", reason="of pipes of POSIX")
def test_reader_that_leaves_early_is_no_error(trained):
    command = [sys.executable, "-P", "-m", "rnnfast", "sample", trained[0], "--length", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as process:
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_texts_that_cannot_be_learnt(tmp_path, capsys):
    path, model = tmp_path / "text", tmp_path / "model"
    assert "No such file" in failure(capsys, "train", "text", path, "-o", model)
    assert "cannot read" in failure(capsys, "train", "text", tmp_path, "-o", model)
    path.write_bytes(b"caf\xe9")
    assert "UTF-8: see byte 3, counted from 0, in line 1" in failure(capsys, "train", "text", path, "-o", model)
    for short in ("", "A short text."):
        path.write_text(short)
        assert f"{len(short)} characters is too short" in failure(capsys, "train", "text", path, "-o", model)
    assert not model.exists()


def test_least_length_is_the_one_it_asks_for(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text("a")
    for small in (SMALL, [*SMALL, "--batch", "1", "--window", "1"]):
        line = failure(capsys, "train", "text", path, "-o", tmp_path / "model", *small)
        least = int(line.split(" take ")[1].split()[0])
        path.write_text("ab" * (least // 2) + "a" * (least % 2))
        assert main(["train", "text", str(path), "-o", str(tmp_path / "model"), *small]) == 0
        path.write_text(path.read_text()[: least // 2])
        capsys.readouterr()


def test_model_that_cannot_be_written_is_not_trained(book, tmp_path, capsys):
    assert "No such file" in failure(capsys, "train", "text", book, "-o", tmp_path / "missing" / "model")
    assert "it is a folder" in failure(capsys, "train", "text", book, "-o", tmp_path)


def test_diverged_training_says_so(book, tmp_path, capsys):
    arguments = ["train", "text", book, "-o", tmp_path / "model", *SMALL, "--lr", "1e38"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "use a lower --lr than 1e+38" in capsys.readouterr().err.splitlines()[-1]


def test_files_that_are_no_models(book, trained, tmp_path, capsys):
    assert "No such file" in failure(capsys, "sample", tmp_path / "none.npz")
    assert "is not a model" in failure(capsys, "sample", book)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert "is not a model" in failure(capsys, "sample", tmp_path / "other.npz")
    rnnfast.GRU(2, 3).save(tmp_path / "layer.npz")
    assert "is not a model" in failure(capsys, "sample", tmp_path / "layer.npz")
    half = tmp_path / "half.npz"
    half.write_bytes(trained[0].read_bytes()[:3000])
    assert "is not a model" in failure(capsys, "sample", half)
    about, arrays = commands.read(str(trained[0]), "text", "")
    del arrays["readout.bias"]
    commands.write(str(half), about, arrays)
    assert "is damaged" in failure(capsys, "sample", half)


def test_start_of_strange_characters(trained, capsys):
    assert "--start has characters that the text has not: ! ß" in failure(capsys, "sample", trained[0], "--start", "ß!")


# -------------------------------------------------------------------------------------------------- train csv, predict


FAST = ["--hidden", "4", "--epochs", "3", "--season", "4"]


@pytest.fixture
def estimators():
    return pytest.importorskip("rnnfast.sklearn", reason="rnnfast.sklearn cannot be imported", exc_type=ImportError)


@pytest.fixture
def quarters():
    rng = np.random.default_rng(0)
    steps = np.arange(80)
    return steps + 10 * np.sin(np.pi * steps / 2 + 0.3) + rng.normal(0, 0.5, 80)


@pytest.fixture
def sheet(tmp_path, quarters):
    """A CSV file with a byte-order mark, blank lines at its end, and a column that is no number."""
    path = tmp_path / "sales.csv"
    rows = [f"{2004 + i // 4}-{3 * (i % 4) + 1:02},shop {i},{value!r}" for i, value in enumerate(quarters.tolist())]
    path.write_text("\ufeffmonth, shop ,sold\n" + "\n".join(rows) + "\n\n\n", encoding="utf-8")
    return path


def train_csv(sheet, model, *arguments):
    return main(["train", "csv", str(sheet), "--column", "sold", "-o", str(model), *FAST, *arguments])


@pytest.mark.parametrize(
    ("known", "to_come"),
    [
        (["1", "2", "3"], ["4", "5"]),
        (["1990", "1995"], ["2000", "2005"]),
        (["0.1", "0.2", "0.3"], ["0.4", "0.5"]),
        (["2024-11", "2024-12"], ["2025-01", "2025-02"]),
        (["2023-08-01", "2023-11-01"], ["2024-02-01", "2024-05-01"]),
        (["2024-01-15", "2024-02-15", "2024-03-15"], ["2024-04-15", "2024-05-15"]),
        (["2023-11-30", "2023-12-31", "2024-01-31"], ["2024-02-29", "2024-03-31"]),
        (["2024-02-26", "2024-02-27"], ["2024-02-28", "2024-02-29"]),
        (["2024-02-16", "2024-02-23"], ["2024-03-01", "2024-03-08"]),
        (["2024-12-31T22:00", "2024-12-31T23:00"], ["2025-01-01T00:00:00", "2025-01-01T01:00:00"]),
        (["2024-12-31 23:58:30", "2024-12-31 23:59:15"], ["2025-01-01 00:00:00", "2025-01-01 00:00:45"]),
    ],
)
def test_times_go_on(known, to_come):
    times = series.Times.of(known)
    assert [times.at(step) for step in (1, 2)] == to_come
    again = series.Times(**json.loads(json.dumps(times.kept)))
    assert [again.at(step) for step in (1, 2)] == to_come
    if len(to_come[0]) == len(known[0]):
        assert [times.at(step) for step in range(1 - len(known), 1)] == known


@pytest.mark.parametrize(
    "texts",
    [
        ["1"],
        ["1", "2", "4"],
        ["3", "2", "1"],
        ["1", "1", "1"],
        ["monday", "tuesday"],
        ["2024-01", "2024-02-01"],
        ["2024-01-01", "2024-01-02", "2024-01-04"],
        ["2024-13", "2024-14"],
        ["1", "", "3"],
        [],
    ],
)
def test_times_that_are_not_even_are_none(texts):
    assert series.Times.of(texts) is None


def test_columns_of_a_file(sheet, quarters):
    months, sold = series.read_columns(str(sheet), ["month", "sold"], ",")
    assert (months[0], months[-1], len(months)) == ("2004-01", "2023-10", 80)
    assert (series.numbers("", "", sold) == quarters).all()
    assert series.read_columns(str(sheet), ["shop"], ",")[0][7] == "shop 7"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"a,b\n1,2\n", [], "has no column 'sold'; its first line names: a, b"),
        (b"", [], "has no column 'sold'; its first line names: none"),
        (b"sold,sold\n1,2\n", [], "has more than one column 'sold'"),
        (b"sold;day\n1;2\n", [], "names: sold;day: is it --delimiter ';'?"),
        (b"sold,day\n1,2\n3\n", [], "line 3 has 1 fields, but the first 2"),
        (b"sold\n1\nmany\n", [], "row 2 below the first line has 'many' in column 'sold': no finite number"),
        (b"sold\n1\ninf\n", [], "row 2 below the first line has 'inf'"),
        (b"sold,x\n,2\n", [], "row 1 below the first line has '' in column"),
        (b'sold\n"1\n', [], "line 2: unexpected end of data"),
        (b"sold\n\xff\n", [], "is not text in UTF-8"),
        (
            b"sold,day\n1,4\n2,5\n3,7\n",
            ["--time-column", "day"],
            "row 3 has '7' after '5', and the first two are '4' and '5'",
        ),
        (b"sold,day\n1,6\n2,5\n3,4\n", ["--time-column", "day"], "go back from row to row"),
        (b"sold,day\n1,6\n2,6\n3,6\n", ["--time-column", "day"], "row 2 has '6' after '6'"),
        (b"sold,day\n1,mo\n2,tu\n", ["--time-column", "day"], "row 1 has 'mo', which is no time"),
        (b"sold,day\n1,2024-01\n2,x\n", ["--time-column", "day"], "row 2 has 'x', which is no time"),
        (b"sold,day\n", ["--time-column", "day"], "too few rows: 0"),
        (b"sold,day\n1,4\n", ["--time-column", "day"], "too few rows: 1"),
        (b"sold\n1\n\n2\n\n", [], "line 3 is blank, but rows follow it"),
        (b"sold\n1_000\n", [], "row 1 below the first line has '1_000'"),
        (b"sold;a\n1,5;2\n", ["--delimiter", ";"], "no finite number; write decimals with a point"),
        (b"\xff\xfes\0", [], "byte 0, counted from 0, in line 1; save it as UTF-8, or if it is UTF-16"),
        (b"sold\n1\n", ["--seed", "99999999999999999999"], "--seed must be from 0 to 4294967295"),
        (b"sold\n1\nx\n", ["--delimiter", r"\t"], "has 'x' in column"),
        (b"sold,day\n1,4\n", ["--time-column", "date"], "has no column 'date'"),
        (b"sold\n1\n", ["--delimiter", ", "], "--delimiter must be one character, got ', '"),
    ],
)
def test_sheets_that_cannot_be_learnt(content, arguments, message, tmp_path, capsys):
    path = tmp_path / "sales.csv"
    path.write_bytes(content)
    command = ["train", "csv", path, "--column", "sold", "-o", tmp_path / "model", *arguments]
    assert message in failure(capsys, *command)
    assert list(tmp_path.iterdir()) == [path]


def test_sheet_that_is_not_there(tmp_path, capsys):
    command = ["train", "csv", tmp_path / "none.csv", "--column", "sold", "-o", tmp_path / "model"]
    assert "cannot read" in failure(capsys, *command)


def test_without_scikit_learn_it_says_what_to_install(sheet, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "rnnfast.sklearn", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    line = failure(capsys, "train", "csv", sheet, "--column", "sold", "-o", tmp_path / "model")
    assert "sklearn" in line


def test_forecast_is_that_of_the_estimator(estimators, sheet, quarters, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model, "--time-column", "month", "--cell", "lstm", "--layers", "2", "--seed", "5") == 0
    report = capsys.readouterr().out
    assert main(["predict", str(model), "--horizon", "6", "--coverage", "0.5"]) == 0
    options = {"hidden_size": 4, "num_layers": 2, "max_epochs": 3, "random_state": 5}
    own = estimators.SequenceForecaster("lstm", differences=4, **options).fit(quarters)
    header, *rows = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert header == ["month", "sold", "lower", "upper"]
    assert [row[0] for row in rows] == ["2024-01", "2024-04", "2024-07", "2024-10", "2025-01", "2025-04"]
    values = np.array([row[1:] for row in rows], float).T
    np.testing.assert_allclose(values, [own.predict(6), *own.predict_interval(6, 0.5)], rtol=1e-7)

    told = [float(word) for word in report.partition("all before: ")[2].replace(",", "").split() if word[0].isdigit()]
    forecast = own.predict(16, series=quarters[:-16])
    repeated = np.tile(quarters[60:64], 4)
    expected = [np.abs(guess - quarters[64:]).mean() for guess in (forecast, repeated)]
    np.testing.assert_allclose(told[:2], expected, rtol=1e-3)
    assert "last 16 rows" in report


@pytest.mark.usefixtures("estimators")
def test_forecast_goes_into_files(sheet, tmp_path, capsys):
    model, sold, picture = tmp_path / "sales.npz", tmp_path / "next.csv", tmp_path / "next.png"
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    few = ["--horizon", "4", "--coverage", "0.5"]
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert main(["predict", str(model), *few, "--output", str(sold), "--plot", str(picture)]) == 0
    assert capsys.readouterr().out == ""
    rows = sold.read_text().splitlines()
    assert rows[0] == "row,sold,lower,upper"
    assert [row.partition(",")[0] for row in rows[1:]] == ["81", "82", "83", "84"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "cannot write" in failure(capsys, "predict", model, "--output", tmp_path / "missing" / "next.csv")


@pytest.mark.usefixtures("estimators")
def test_forecast_so_long_that_it_has_no_bounds(sheet, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert main(["predict", str(model), "--horizon", "30"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("row,sold\n81,")
    assert len(out.splitlines()) == 31
    assert err.startswith("No bounds: ")


@pytest.mark.usefixtures("estimators")
def test_ctrl_c_keeps_the_best_forecaster_so_far(sheet, tmp_path, capsys, monkeypatch):
    made, epochs = series.forecaster_of, []

    def with_ctrl_c(options):
        forecaster = made(options)
        epoch = forecaster._epoch

        def counted(*arguments):
            epochs.append(1)
            if len(epochs) == 2:
                signal.raise_signal(signal.SIGINT)
            return epoch(*arguments)

        forecaster._epoch = counted
        return forecaster

    monkeypatch.setattr(series, "forecaster_of", with_ctrl_c)
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model, "--epochs", "50") == 130
    assert len(epochs) == 2
    assert "Stopped by Ctrl-C after 2 epochs" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert main(["predict", str(model)]) == 0


@pytest.mark.usefixtures("estimators")
def test_series_that_is_too_short(tmp_path, capsys):
    path = tmp_path / "sales.csv"
    path.write_text("sold\n1\n2\n3\n")
    line = failure(capsys, "train", "csv", path, "--column", "sold", "--season", "12", "-o", tmp_path / "model")
    assert "3 rows are too few, as 1 are held out: the others must be 12 for --season" in line


@pytest.mark.usefixtures("estimators")
def test_models_of_another_kind_or_damaged_give_no_forecast(sheet, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert "is not a model" in failure(capsys, "sample", model)
    random_model().save(str(tmp_path / "text.npz"))
    assert "is not a model" in failure(capsys, "predict", tmp_path / "text.npz")
    about, arrays = commands.read(str(model), "series", "")
    for spoilt in ({"readout.bias": np.zeros(7)}, {"series": np.zeros(2)}, {"series": np.full(80, np.nan)}):
        commands.write(str(model), about, {**arrays, **spoilt})
        assert "is damaged" in failure(capsys, "predict", model)
    commands.write(str(model), {"kind": "series"}, arrays)
    assert "is damaged" in failure(capsys, "predict", model)


# ------------------------------------------------------------------------------------------------ files that are one


@pytest.mark.parametrize("alias", ["itself", "relative", "symbolic link", "hard link"])
def test_no_command_overwrites_what_it_reads(alias, book, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = {"itself": book, "relative": Path("book.txt")}.get(alias, tmp_path / "other")
    if alias.endswith("link"):
        (other.symlink_to if alias[0] == "s" else other.hardlink_to)(book)
    before = book.read_bytes()
    for command in (
        ["train", "text", book, "-o", other],
        ["train", "csv", book, "--column", "sold", "-o", other],
        ["predict", book, "--output", other],
        ["predict", book, "--plot", other],
        ["predict", "model", "--output", book, "--plot", other],
        ["bench", "--json", book, "--plot", other],
    ):
        assert "are the same file" in failure(capsys, *command)
        assert book.read_bytes() == before


def test_two_outputs_that_are_not_there_yet_are_one(tmp_path, capsys):
    new = tmp_path / "new.png"
    assert "--output and --plot are the same file" in failure(capsys, "predict", "m", "--output", new, "--plot", new)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "text", "x", "-o", ""],
        ["predict", "x", "--output", ""],
        ["bench", "--json", ""],
        ["bench", "--plot", ""],
    ],
)
def test_empty_names_of_files(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "must be the name of a file, but is empty" in capsys.readouterr().err


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is full")


@FULL
@pytest.mark.parametrize("command", [["info"], ["--help"], ["sample", "--length", "5"], ["predict"]])
def test_full_device_in_place_of_the_output(command, tmp_path):
    if command[0] == "sample":
        random_model().save(str(tmp_path / "model"))
        command = [*command, str(tmp_path / "model")]
    if command[0] == "predict":
        pytest.importorskip("sklearn")
        series.save(
            str(tmp_path / "model"),
            series.forecaster_of({"max_epochs": 1}).fit(np.sin(np.arange(40))),
            np.sin(np.arange(40)),
            {"options": {}, "times": None, "column": "y", "time_column": None},
        )
        command = [*command, str(tmp_path / "model")]
    run = (
        f"import sys; sys.stdout = open('/dev/full', 'w'); from rnnfast.__main__ import main; sys.exit(main({command}))"
    )
    result = python(code=run)
    assert result.returncode == 2
    assert result.stderr.endswith("cannot write the output: No space left on device\n")
    assert "Traceback" not in result.stderr


@FULL
def test_full_device_in_place_of_a_file(book, capsys):
    arguments = ["bench", "--json", "/dev/full", "--T", "2", "--N", "1", "--I", "2", "--H", "2", "--rounds", "1"]
    result = python(*arguments)
    assert result.returncode == 2
    assert result.stderr.endswith("cannot write /dev/full: No space left on device\n")
    assert "Traceback" not in result.stderr
    assert "not a file on a disk" in failure(capsys, "train", "text", book, "-o", "/dev/full")


@pytest.mark.skipif(sys.platform == "win32", reason="of the shell of POSIX")
def test_output_that_is_closed():
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    for closing in (">&-", ">&- 2>&-"):
        result = subprocess.run(
            f"{shlex.quote(sys.executable)} -P -m rnnfast info {closing}",
            shell=True,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2
        assert result.stderr in ("python -m rnnfast: there is no standard output: it was closed\n", "")


def test_layers_that_are_too_large_for_an_array(book, tmp_path, capsys):
    for hidden in (10**9, 10**12, 10**30):
        line = failure(capsys, "train", "text", book, "-o", tmp_path / "model", "--hidden", hidden)
        assert "use smaller" in line


def test_training_that_is_worse_than_guessing_is_not_saved(book, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text.Model, "bits", lambda *_: 9.0)
    path = tmp_path / "model"
    path.write_text("an older model")
    assert main(["train", "text", str(book), "-o", str(path), *SMALL]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "use a lower --lr than 0.003" in line
    assert f"9.000 bits per character, and {math.log2(len(set(TEXT))):.3f} by guessing" in line
    assert path.read_text() == "an older model"


def test_start_is_checked_before_anything_is_printed(trained, capsys):
    assert main(["sample", str(trained[0]), "--start", "ß"]) == 2
    assert capsys.readouterr().out == ""


def test_pictures_of_unknown_formats_are_refused_before_the_work(capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "must end in one of" in failure(capsys, "predict", "model", "--plot", "next.foo")


@pytest.mark.usefixtures("estimators")
def test_series_that_diverges_or_is_too_large(sheet, tmp_path, capsys):
    arguments = ["train", "csv", sheet, "--column", "sold", "-o", tmp_path / "model", *FAST]
    assert "use a lower --lr than 1e+38" in failure(capsys, *arguments, "--lr", "1e38")
    rows = "".join(f"{'-' * (i * i % 7 > 2)}1e300\n" for i in range(80))
    sheet.write_text(f"sold\n{rows}")
    assert "row 1 below the first line has '1e300' in column 'sold': too large" in failure(capsys, *arguments)
    assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("estimators")
def test_horizon_without_end(sheet, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert "--horizon must be at most 8,000" in failure(capsys, "predict", model, "--horizon", 99999999999)


def test_info_says_what_it_makes_of_strange_numbers_of_threads():
    told = python("info", RNNFAST_NUM_THREADS="x", OMP_NUM_THREADS="-3").stdout
    assert "RNNFAST_NUM_THREADS is 'x', which is no number, and is passed over" in told
    assert "-3 by OMP_NUM_THREADS (taken as 1)" in told
    assert "RNNFAST_NUM_THREADS" not in told.partition("no limit by")[2].partition("\n")[0]
