"""Pictures of a graph: Mermaid, DOT, SVG and text."""
