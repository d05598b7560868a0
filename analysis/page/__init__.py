"""One self-contained HTML page of a results folder: `lynx-results report`."""
