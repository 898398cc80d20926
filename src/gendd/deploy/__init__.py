"""Deployment of a finished student: fold a readout, export, upload, or classify image files."""

from gendd.deploy.batch_norm import fold_batch_norms
from gendd.deploy.deployed import Deployed, deploy

__all__ = ["Deployed", "deploy", "fold_batch_norms"]
