"""The column of datafusion-cli in the table of shell_points.py, from its documentation and source.

No package index has the program. The sources: its user guide (https://datafusion.apache.org/user-guide/cli/usage.html), and
the folder datafusion-cli/src of https://github.com/apache/datafusion. A point that neither decides is left out.
"""

GUIDE, SOURCE = "user guide", "source"
POINTS = {
    "leaves": (False, SOURCE, "`quit` and `exit` are read as SQL; `\\q` and Ctrl-D leave"),
    "helps": (False, SOURCE, "`\\?` only"),
    "keeps_history": (True, SOURCE, "in the file `.history` of the working folder"),
    "searches_history": (True, SOURCE, "by rustyline"),
    "opens_editor": (False, GUIDE, "no such command"),
    "completes_keyword": (False, SOURCE, "completes names of files only"),
    "completes_table": (False, SOURCE, "completes names of files only"),
    "completes_column": (False, SOURCE, "completes names of files only"),
    "completes_function": (False, SOURCE, "completes names of files only"),
    "completes_command": (False, SOURCE, "completes names of files only"),
    "completes_value": (False, SOURCE, "completes names of files only"),
    "completes_file": (False, SOURCE, "only after LOCATION of CREATE EXTERNAL TABLE"),
    "obeys_no_color": (True, GUIDE, "no colours without `--color`"),
    "highlights": (True, GUIDE, "with `--color`"),
    "fits_width": (False, SOURCE, "columns are as wide as their values"),
    "cuts_values": (False, SOURCE, "columns are as wide as their values"),
    "cuts_rows": (True, GUIDE, "40 rows, `--maxrows`"),
    "prints_all": (False, GUIDE, "`--maxrows inf` at the start only"),
    "shows_vertical": (False, GUIDE, "no such format"),
    "tells_null": (True, SOURCE, "NULL is printed as `NULL`"),
    "marks_place": (False, SOURCE, "errors are printed without a place"),
    "suggests_column": (True, SOURCE, "`Did you mean 'changes.dataset_name'?`, as DataFusion has it"),
    "suggests_table": (False, SOURCE, "`table … not found`, as DataFusion has it"),
    "times": (True, SOURCE, "`Elapsed 0.005 seconds.`"),
    "stops_query": (True, SOURCE, "Ctrl-C drops the query where it yields"),
    "keeps_order": (False, SOURCE, "first all files, then all commands"),
    "fails_scripts": (False, SOURCE, "a failed statement of a file is printed, and the next one runs"),
    "explains": (True, SOURCE, "a drawn tree"),
    "includes_file": (True, SOURCE, "`\\i`"),
    "writes_file": (False, GUIDE, "no such command; `COPY … TO`"),
    "watches": (False, GUIDE, "no such command"),
    "sets_variables": (False, GUIDE, "no variables; `PREPARE … EXECUTE`"),
    "writes_formats": (False, GUIDE, "no Markdown"),
    "lists_comments": (False, GUIDE, "`\\d` is SHOW TABLES"),
    "describes": (True, GUIDE, "`\\d NAME`"),
    "summarizes": (False, GUIDE, "no such statement"),
    "goes_back": (False, GUIDE, "no such command"),
}
