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
  new MutationObserver((changes) => {  // new tiles show what the others show; ids of another list of classes mean nothing here
    const added = (node) => node.querySelector?.(".tile[data-ids], tr[data-class]");
    if (kept === null || !changes.some((change) => [...change.addedNodes].some(added))) return;
    if (names() !== keptNames) kept = null;
    mark();
  }).observe(document.body, {childList: true, subtree: true});
}
