"""A synthetic run and its page, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusalscope.report import write_report
from report.fake_belief import write_fake_belief
from report.fake_cliff import write_fake_cliff
from report.fake_features import write_fake_features
from report.fake_guard import write_fake_guard
from report.fake_repair import write_fake_repair
from report.fake_routing import write_fake_routing
from report.fake_run import write_fake_run


@pytest.fixture(scope="session")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every table of an audit."""
    return write_fake_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="session")
def report(fake_run: Path) -> Path:
    """Its page."""
    return write_report(fake_run)


@pytest.fixture(scope="session")
def routing_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every table of a routing study."""
    return write_fake_routing(tmp_path_factory.mktemp("routing") / "run")


@pytest.fixture(scope="session")
def routing_report(routing_run: Path) -> Path:
    """Its page."""
    return write_report(routing_run)


@pytest.fixture(scope="session")
def features_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every table of a features study."""
    return write_fake_features(tmp_path_factory.mktemp("features") / "run")


@pytest.fixture(scope="session")
def features_report(features_run: Path) -> Path:
    """Its page."""
    return write_report(features_run)


@pytest.fixture(scope="session")
def cliff_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every table of a cliff study."""
    return write_fake_cliff(tmp_path_factory.mktemp("cliff") / "run")


@pytest.fixture(scope="session")
def cliff_report(cliff_run: Path) -> Path:
    """Its page."""
    return write_report(cliff_run)


@pytest.fixture(scope="session")
def repair_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished repair."""
    return write_report(write_fake_repair(tmp_path_factory.mktemp("repair") / "run"))


@pytest.fixture(scope="session")
def guard_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished fit of a guard."""
    return write_report(write_fake_guard(tmp_path_factory.mktemp("guard") / "run"))


@pytest.fixture(scope="session")
def belief_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished belief study."""
    return write_report(write_fake_belief(tmp_path_factory.mktemp("belief") / "run"))
