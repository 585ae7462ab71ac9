"""Pytest plugin of .ci/run: do not repeat a test that passed in an earlier step of the same run.

.ci/run installs it into its virtual environments. Hypothesis tests always run: --full draws more cases.
"""

from pathlib import Path

import pytest

RECORD = ".ci-passed"


class Passed:
    def __init__(self, record: Path) -> None:
        self.record = record
        self.any_again = False
        self.before = set(record.read_text().splitlines()) if record.exists() else set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        yield  # to the selection in tests/conftest.py, which must see all cases
        again = [item for item in items if item.nodeid in self.before and not drawn(item)]
        self.any_again = bool(again)
        if again:
            items[:] = [item for item in items if item.nodeid not in self.before or drawn(item)]
            config.hook.pytest_deselected(items=again)

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.any_again:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            with self.record.open("a") as file:
                file.write(report.nodeid + "\n")


def drawn(item):
    return getattr(getattr(item, "obj", None), "is_hypothesis_test", False)


def pytest_configure(config):
    if (config.rootpath / ".ci" / "passed.py").exists():  # else the tests of another package, which ours may start
        config.pluginmanager.register(Passed(config.rootpath / RECORD))
