// How the search ranks what it finds: Sphinx's own weights, but the guides come before what is for few readers.
const BESIDE = /^(README|CHANGELOG|CONTRIBUTING|SECURITY|CODE_OF_CONDUCT|bench|proofs|findings|docs\/(benchmarks|design))/;

var Scorer = {
  score: ([page, title, anchor, description, score]) => score + (BESIDE.test(page) ? -6 : page.startsWith("docs/") ? 2 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
