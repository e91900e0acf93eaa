"""The engine's work, as Python sees it: patcher asks for it, registry tells of it."""
