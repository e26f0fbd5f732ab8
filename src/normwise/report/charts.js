// A page whose charts are all rows.
page.start({ rows: rows.drawn });
