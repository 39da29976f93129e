(function () {
  const copy = document.getElementById("copy");
  if (copy) {
    const command = document.getElementById("command");
    copy.hidden = false;
    copy.addEventListener("click", async function () {
      getSelection().selectAllChildren(command);
      try {
        await navigator.clipboard.writeText(command.textContent);
        copy.textContent = "Copied";
      } catch (error) {
        copy.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      }
      setTimeout(function () { copy.textContent = "Copy"; }, 1500);
    });
  }
  const filter = document.getElementById("filter");
  if (filter) {
    const cards = Array.from(document.querySelectorAll(".card"));
    const update = function () {
      const wanted = Array.from(new FormData(filter)).filter(function (pair) { return pair[1] !== ""; });
      for (const card of cards) {
        card.hidden = !wanted.every(function (pair) { return card.dataset[pair[0]] === pair[1]; });
      }
      const shown = cards.filter(function (card) { return !card.hidden; }).length;
      filter.querySelector("output").textContent = "Showing " + shown + " of " + cards.length;
    };
    filter.hidden = false;
    filter.addEventListener("change", update);
    filter.addEventListener("submit", function (event) { event.preventDefault(); });
    update();
  }
})();
