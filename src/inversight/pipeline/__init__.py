"""One file for each stage, each a typed function that every command uses; an audit composes them.

The only room that knows every stage. Nothing is imported here: take what you need from its module.
"""
