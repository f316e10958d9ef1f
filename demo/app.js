() => {
  // Legend and tiles: hovering or focusing a legend row shows its class alone in every tile; a click keeps it so.
  const loaded = new WeakMap();
  let kept = null, keptNames = null;

  const tiles = () => [...document.querySelectorAll(".tile[data-ids]")];

  async function idsOf(tile) {
    if (!loaded.has(tile)) {
      loaded.set(tile, (async () => {
        const image = new Image();
        image.src = tile.dataset.ids;
        await image.decode();
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        const context = canvas.getContext("2d", {willReadFrequently: true});
        context.drawImage(image, 0, 0);
        const {data, width, height} = context.getImageData(0, 0, canvas.width, canvas.height);
        const ids = new Uint16Array(width * height);
        for (let i = 0; i < ids.length; i++) ids[i] = data[4 * i] + 256 * data[4 * i + 1];
        return {ids, width, height};
      })());
    }
    return loaded.get(tile);
  }

  async function veil(tile, classId) {
    const canvas = tile.querySelector("canvas");
    tile.dataset.shown = classId ?? "";
    if (classId === null) { canvas.width = 0; return; }
    const {ids, width, height} = await idsOf(tile);
    if (tile.dataset.shown !== String(classId)) return;  // another class by now
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    for (let i = 0; i < ids.length; i++) if (ids[i] !== classId) pixels.data.set([14, 18, 28, 215], 4 * i);
    context.putImageData(pixels, 0, 0);
  }

  function show(classId) { for (const tile of tiles()) veil(tile, classId); }

  const names = () => document.querySelector(".tiles")?.dataset.names ?? null;

  function mark() {
    for (const row of document.querySelectorAll("tr[data-class]")) {
      const on = kept !== null && Number(row.dataset.class) === kept;
      row.classList.toggle("kept", on);
      row.querySelector("button")?.setAttribute("aria-pressed", String(on));
    }
    show(kept);
  }

  function keep(classId) {
    kept = kept === classId ? null : classId;
    keptNames = names();
    mark();
  }

  const rowOf = (event) => event.target.closest?.("tr[data-class]");

  async function classAt(event, stage) {
    const tile = stage.closest(".tile");
    const box = stage.getBoundingClientRect();
    const {ids, width, height} = await idsOf(tile);
    const x = Math.floor((event.clientX - box.left) / box.width * width);
    const y = Math.floor((event.clientY - box.top) / box.height * height);
    return ids[Math.min(height - 1, Math.max(0, y)) * width + Math.min(width - 1, Math.max(0, x))];
  }

  const stageOf = (event) => event.target.closest?.(".tile[data-ids] .stage");

  document.addEventListener("pointerover", (event) => { const row = rowOf(event); if (row) show(Number(row.dataset.class)); });
  document.addEventListener("pointerout", (event) => { if (rowOf(event)) show(kept); });
  document.addEventListener("focusin", (event) => { const row = rowOf(event); if (row) show(Number(row.dataset.class)); });
  document.addEventListener("focusout", (event) => { if (rowOf(event)) show(kept); });
  document.addEventListener("click", async (event) => {
    const row = rowOf(event), stage = stageOf(event);
    if (row && event.target.closest("button")) keep(Number(row.dataset.class));
    else if (stage) keep(await classAt(event, stage));
  });
  document.addEventListener("pointermove", async (event) => {
    const stage = stageOf(event);
    if (!stage) return;
    const name = JSON.parse(stage.closest(".tiles").dataset.names)[await classAt(event, stage)];
    stage.querySelector(".under").textContent = name ?? "";
  });
  // The line of the slider, which only a pointer can drag, takes the arrow keys, Home and End.
  const STEPS = {ArrowLeft: -.05, ArrowDown: -.05, ArrowRight: .05, ArrowUp: .05, Home: -1, End: 1};

  function offerKeys(line) {
    if (line.tabIndex === 0) return;
    line.tabIndex = 0;
    line.setAttribute("role", "slider");
    line.setAttribute("aria-label", "Line between the two pictures");
    for (const [name, value] of [["min", 0], ["max", 100], ["now", 50]]) line.setAttribute(`aria-value${name}`, value);
  }

  document.addEventListener("keydown", (event) => {
    const line = event.target.closest?.("#slider .outer");
    if (!line || !(event.key in STEPS)) return;
    event.preventDefault();
    const box = line.getBoundingClientRect(), stage = line.parentElement.getBoundingClientRect();
    const from = box.left + box.width / 2, wanted = from + STEPS[event.key] * stage.width;
    const to = Math.min(stage.right - 1, Math.max(stage.left + 1, wanted));
    const drag = (type, target, x) => target.dispatchEvent(
      new MouseEvent(type, {bubbles: true, cancelable: true, view: window, clientX: x, clientY: box.top + box.height / 2}));
    drag("mousedown", line, from);
    drag("mousemove", window, to);
    drag("mouseup", window, to);
    line.setAttribute("aria-valuenow", Math.round(100 * (to - stage.left) / stage.width));
  });

  new MutationObserver(() => document.querySelectorAll("#slider .outer").forEach(offerKeys)).observe(
    document.body, {childList: true, subtree: true});

  new MutationObserver((changes) => {  // new tiles show what the others show; ids of another list of classes mean nothing here
    const added = (node) => node.querySelector?.(".tile[data-ids], tr[data-class]");
    if (kept === null || !changes.some((change) => [...change.addedNodes].some(added))) return;
    if (names() !== keptNames) kept = null;
    mark();
  }).observe(document.body, {childList: true, subtree: true});
}
