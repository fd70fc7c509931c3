"""One page, and PNG figures, of what runs have measured: `itt report`."""
