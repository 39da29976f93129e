"""A figure's rows from run folders, a function per task; `runner.figures` knows which."""
