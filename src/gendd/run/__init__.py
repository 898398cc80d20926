"""Runs, from configuration to report, and everything done with a finished run.

Modules in import order, none importing a later one: settings, folder, output; networks, teacher, checks;
training, measuring, exhibits; probing, finished; experiment; steps, planning, profiling, caching, scoring,
watching, distilling.
"""

from gendd.run.caching import fill_cache
from gendd.run.distilling import distill
from gendd.run.experiment import execute
from gendd.run.finished import Run
from gendd.run.planning import plan_run
from gendd.run.probing import probe_run
from gendd.run.profiling import profile_run
from gendd.run.scoring import evaluate_network, evaluate_run
from gendd.run.watching import watch_run

__all__ = [
    "Run",
    "distill",
    "evaluate_network",
    "evaluate_run",
    "execute",
    "fill_cache",
    "plan_run",
    "probe_run",
    "profile_run",
    "watch_run",
]
