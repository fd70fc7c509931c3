"""The paper's figures, and the tables that stand beside them."""
