"""A page for the browser that shows the devices of a broker and asks them: one HTML file, built from tools/console."""
