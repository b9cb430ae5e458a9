"""Tables in Markdown, for the scripts beside it."""


def table(head, rows):
    """Prints a table of strings."""
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
