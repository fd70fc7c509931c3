"""One page, and PNG figures, of what runs have measured: `python -m itt_composer.report`."""
