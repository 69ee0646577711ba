"""Reports: a list of blocks made from figures, written as Markdown and as one self-contained HTML page."""
