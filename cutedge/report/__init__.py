"""A report: tables of figures, drawings as plain data, and the page and pictures made of them."""
