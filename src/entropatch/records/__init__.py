"""Writing what was measured: files that are whole or not there, tables, Pareto fronts."""
