"""A finished student elsewhere: one readout folded, exported, uploaded, or asked about image files."""

from gendd.deploy.batch_norm import fold_batch_norms
from gendd.deploy.deployed import Deployed, deploy

__all__ = ["Deployed", "deploy", "fold_batch_norms"]
