(function () {
  const viewer = document.getElementById("viewer");
  const links = Array.from(document.querySelectorAll("a.enlarge"));
  let current = 0;
  const show = function (i) {
    current = (i + links.length) % links.length;
    const image = links[current].querySelector("img");
    const content = links[current].firstElementChild.cloneNode(true);
    viewer.style.setProperty("--ratio", image.getAttribute("width") / image.getAttribute("height") || 1);
    viewer.querySelector(".place").replaceChildren(content);
    viewer.querySelector("p").textContent = image.alt;
  };
  const move = function (by) {
    let i = current;
    do { i = (i + by + links.length) % links.length; } while (links[i].offsetParent === null && i !== current);
    show(i);
  };
  links.forEach(function (link, i) {
    link.addEventListener("click", function (event) {
      if (event.ctrlKey || event.metaKey || event.shiftKey || !viewer.showModal) return;
      event.preventDefault();
      show(i);
      viewer.showModal();
    });
  });
  viewer.addEventListener("click", function (event) {
    const by = event.target.dataset ? event.target.dataset.move : undefined;
    if (by === "0" || event.target === viewer) viewer.close();
    else if (by !== undefined) move(Number(by));
  });
  viewer.addEventListener("keydown", function (event) {
    if (event.key === "ArrowRight") move(1);
    if (event.key === "ArrowLeft") move(-1);
  });
  viewer.addEventListener("close", function () { if (links[current]) links[current].focus(); });
})();
