// The sample browser: a document, vanilla's answer and a policy's side by side, word by word.

const KINDS = [
  { id: "changed", name: "score changed", test: (a, b) => a && b && a[2] !== b[2] },
  { id: "lost", name: "lost", test: (a, b) => a && b && a[2] !== null && b[2] !== null && b[2] < a[2] },
  { id: "gained", name: "gained", test: (a, b) => a && b && a[2] !== null && b[2] !== null && b[2] > a[2] },
  { id: "differs", name: "text differs", test: (a, b) => a && b && a[0] !== b[0] },
  { id: "all", name: "all", test: () => true },
];

function sampleBrowser(root, data) {
  const { texts, groups, shown: counts } = data;
  if (!groups.length) { refill(root, h("p", {}, "No sample is on record.")); return null; }
  const text = (number) => (number < 0 ? null : texts[number]);
  const place = (group) => [group.setting, group.task, `batch ${group.batch}`, `seed ${group.seed}`];
  const varying = place(groups[0]).map((_, i) => new Set(groups.map((group) => place(group)[i])).size > 1);
  const label = (group) => place(group).filter((part, i) => part && (i === 1 || varying[i])).join(" · ");
  groups.forEach((group) => { group.name = label(group); });
  const state = { group: groups[0], run: null, kind: KINDS[4], at: 0, diff: true };
  const controls = h("div", { class: "controls" }), card = h("div", { class: "card sample", tabindex: 0, "aria-label": "sample" });
  refill(root, controls, card);

  const baseline = (group) => group.runs.find((run) => run.policy === "vanilla") || null;
  const others = (group) => group.runs.filter((run) => run !== baseline(group));
  const matching = (kind) => state.group.docs.map((_, i) => i).filter(
    (i) => kind.test(baseline(state.group)?.rows[i], state.run?.rows[i]));

  function enter(group, series) {
    state.group = group;
    state.run = others(group).find((run) => run.series === (series ?? state.run?.series)) || others(group)[0] || null;
    settle();
  }

  function settle() { // the first kind that has a sample, the one chosen before first
    state.at = 0;
    const wanted = state.wanted ?? KINDS[0];
    state.kind = [wanted, ...KINDS].find((kind) => matching(kind).length) || KINDS[4];
    render();
  }

  function step(by) {
    const number = matching(state.kind).length;
    state.at = (state.at + by + number) % number;
    render();
  }

  function render() {
    const found = matching(state.kind), vanilla = baseline(state.group);
    const active = [...controls.querySelectorAll("button, select")].indexOf(document.activeElement);
    refill(controls,
      h("div", { class: "row" },
        select("requests", groups, state.group, (group) => enter(group)),
        state.run && select("policy", others(state.group).map((run) => ({ run, name: run.series })),
          null, (one) => { state.run = one.run; settle(); })),
      state.run && vanilla && h("div", { class: "row", role: "group", "aria-label": "which samples" },
        KINDS.map((kind) => fill(chip(`${kind.name} ${matching(kind).length}`, kind === state.kind, () => {
          Object.assign(state, { kind, wanted: kind, at: 0 });
          render();
        }), { disabled: !matching(kind).length }, []))),
      h("div", { class: "row turn" },
        h("button", { type: "button", "aria-label": "previous sample", on: { click: () => step(-1) } }, "‹"),
        h("span", { class: "position", "aria-live": "polite" }, `${found.length ? state.at + 1 : 0} of ${found.length}`),
        h("button", { type: "button", "aria-label": "next sample", on: { click: () => step(1) } }, "›"),
        h("label", { class: "tick" }, h("input", { type: "checkbox", checked: state.diff, on: { change: () => { state.diff = !state.diff; render(); } } }), "mark what differs"),
        h("span", { class: "dim" }, coverage())));
    const policies = controls.querySelectorAll("select")[1];
    if (policies) policies.selectedIndex = others(state.group).indexOf(state.run);
    if (active >= 0) controls.querySelectorAll("button, select")[active]?.focus();
    refill(card, found.length ? sample(found[state.at]) : h("p", {}, "No such sample."));
  }

  function coverage() {
    const name = state.group.task.split(": ").pop(), [some, all] = counts[name] || [0, 0];
    return some < all ? `${some} of ${all} documents are on this page, those whose score changed first` : "";
  }

  function sample(i) {
    const [doc, target, prompt, hash] = state.group.docs[i], vanilla = baseline(state.group);
    const mine = vanilla?.rows[i] ?? null, theirs = state.run?.rows[i] ?? null;
    const own = mine && (text(mine[0]) ?? ""), other = theirs && (text(theirs[0]) ?? "");
    const both = state.diff && mine && theirs ? compared(own, other) : [[[true, own]], [[true, other]]];
    return [
      h("h3", {}, `document ${doc}`, h("small", {}, ` ${state.group.name}${theirs || mine ? ` · lane ${(theirs || mine)[6]}` : ""}`)),
      h("details", { open: prompt >= 0 && text(prompt).length < 700 }, h("summary", {}, "prompt"),
        prompt >= 0 ? h("pre", { class: "prompt" }, text(prompt)) : h("p", { class: "dim" }, `not on this page; its hash is ${hash}`)),
      h("details", { open: (text(target) || "").length < 400 }, h("summary", {}, "target"), h("pre", {}, text(target) ?? "none")),
      h("div", { class: `answers${mine && theirs ? " two" : ""}` },
        mine && answer("vanilla", mine, both[0]), theirs && answer(state.run.series, theirs, both[1])),
    ];
  }

  function answer(name, row, pieces) {
    const [response, filtered, score, verdict, ended, tokens] = row, own = text(response) ?? "";
    const body = pieces.map(([same, part]) => (same ? part : h("mark", {}, part)));
    const good = score === null ? "" : score >= 1 ? " good" : score <= 0 ? " bad" : " part";
    const cut = text(ended) === "length";
    return h("div", { class: "answer" },
      h("header", {}, h("b", {}, name),
        score !== null && h("span", { class: `badge${good}` }, `score ${Number.isInteger(score) ? score : score.toFixed(3)}`),
        text(verdict) !== null && h("span", { class: "badge" }, text(verdict)),
        cut && h("span", { class: "badge bad" }, "cut off")),
      h("pre", {}, own === "" ? h("span", { class: "dim" }, "(empty)") : body),
      h("footer", { class: "dim" },
        text(filtered) !== null && text(filtered) !== own && h("div", {}, "scored as ", h("code", {}, text(filtered))),
        h("div", {}, text(ended) === "scored" ? "chosen by log-likelihood" : `${tokens} tokens, ended by ${text(ended)}`)));
  }

  root.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || event.target.tagName === "INPUT") return;
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else return;
    event.preventDefault();
  });
  const changes = (group, run) => group.docs.filter((_, i) => KINDS[0].test(baseline(group)?.rows[i], run.rows[i])).length;
  const eventful = groups.find((group) => others(group).some((run) => changes(group, run)));
  enter(eventful || groups[0], eventful && others(eventful).find((run) => changes(eventful, run)).series);

  // from the chart: the policy's samples at its task and batch size (of the mean: at the task where most scores changed)
  return (point) => {
    const run = (group) => group.runs.find((one) => one.series === point.series);
    const fits = (group) => group.setting === point.setting && group.batch === point.batch && run(group);
    const here = groups.filter(fits), most = (a, b) => changes(b, run(b)) - changes(a, run(a));
    const group = here.find((one) => one.task === point.task) || here.sort(most)[0];
    if (!group) return;
    enter(group, point.series);
    root.closest("section").scrollIntoView({ behavior: "smooth" });
  };
}
