// The page, from top to bottom.

heading();
findings();
facts();
const links = [];
if (report.parallel) layout("layout", report.parallel, "files", "file", links);
if (report.target) layout("target", report.target, "sources", "source", links);
norms();
parameters();
inventory();
