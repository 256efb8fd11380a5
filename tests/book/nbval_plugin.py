"""Makes nbval execute as Jupyter does, and compare what belongs to the page."""

from nbval.kernel import RunningKernel


def execute_with_history(self, cell_input, allow_stdin=None):
    """Executes a cell, returns the message id. Without a history IPython does not see a `;` at its end."""
    return self.kc.execute(cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


RunningKernel.execute_cell_input = execute_with_history


def pytest_collection_modifyitems(items):
    """Leaves out progress bars: a phantom that another machine has in its cache is made here."""
    for notebook in {item.parent for item in items}:
        notebook.skip_compare += ("stderr",)
