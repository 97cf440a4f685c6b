// What the theme leaves out for those who read without eyes or a mouse: its regions of copy buttons, made when their code comes
// into view, have no names, and what scrolls is not reached by keyboard: tables never, code not before it is in view.
let regions = 0;
function complete() {
  for (const region of document.querySelectorAll("nav.md-code__nav:not([aria-label])"))
    region.setAttribute("aria-label", `Code ${++regions}`);
  for (const box of document.querySelectorAll("pre > code, .md-typeset__scrollwrap"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", complete);
complete();
