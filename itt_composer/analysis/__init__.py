"""What trained models do inside: gradients of easy and hard problems, and which tokens think."""
