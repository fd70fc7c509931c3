"""Looks into trained models: gradients of easy and hard problems, and which tokens think."""
