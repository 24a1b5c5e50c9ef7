"""The table's rows: which engines are asked for what, and what is made of their answers. A row measures nothing."""
