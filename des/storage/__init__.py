"""Storage: where the objects of a store lie, behind one narrow protocol."""
