"""Makes one page, and PNG figures, of what runs measured: `itt report`."""
