"""Where each op runs, and what crosses between devices because of it."""
