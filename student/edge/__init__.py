"""Graphs of one shape, as edge devices load them: constants computed once, attention in plain operators, fp16."""
