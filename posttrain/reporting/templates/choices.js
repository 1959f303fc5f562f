const forms = [...document.querySelectorAll("form[data-id]")];
const save = document.getElementById("save");
function count() {
  const done = forms.filter(form => new FormData(form).get("choice")).length;
  document.getElementById("done").textContent = done + " of " + forms.length + " answered";
}
document.addEventListener("change", count);
save.addEventListener("click", () => {
  const choices = {};
  for (const form of forms) {
    const choice = new FormData(form).get("choice");
    if (choice) choices[form.dataset.id] = choice;
  }
  const answers = JSON.stringify({answers: save.dataset.answers, choices: choices}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([answers], {type: "application/json"}));
  link.download = "choices.json";
  link.click();
});
count();
