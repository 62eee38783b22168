// learning again: corrected cases are kept as labels, a training begins with the model that is shown
import { app, attempt, element, former, say } from './app'
import { type Learned, server, type Training } from './server'

const GOING = ['waiting', 'running']

let shown: () => void = () => undefined // who shows the list again

export function prepareLearning(changed: () => void): void {
  shown = changed
  element('keep').onclick = attempt(async () => {
    const { kept } = await server.keep(app.current)
    app.state.kept = kept
    showLearning()
    changed()
    say('')
  })
  element('train').onclick = attempt(async () => {
    const { job } = await server.train(Number(element<HTMLInputElement>('minutes').value))
    await watch(job)
  })
  element('stop').onclick = attempt(async () => {
    if (app.state.training) await server.cancelTraining(app.state.training.job)
  })
  showLearning()
  if (app.state.training && GOING.includes(app.state.training.state)) attempt(() => watch(app.state.training?.job ?? 0))()
}

/** What was kept, and how the training is. */
export function showLearning(): void {
  const { kept, learns, training } = app.state
  element('learn').hidden = !learns
  element('former').hidden = !former(app.answer)
  element('former').title = app.answer?.model ?? ''
  const here = kept.includes(app.current)
  element('keptCount').textContent = kept.length
    ? `${kept.length} kept${here ? ', this one among them' : ''}; in ${app.state.out}/corrections`
    : 'Correct an answer, then keep it; the model learns from what is kept.'
  element('keep').textContent = here ? 'Keep again' : 'Keep as a label'
  element<HTMLButtonElement>('keep').disabled = !app.answer
  const going = training !== null && GOING.includes(training.state)
  element<HTMLButtonElement>('train').disabled = going || kept.length < 2
  element('stop').hidden = !going
  element('trained').hidden = !going
  if (training) showTraining(training)
}

async function watch(job: number): Promise<void> {
  await server.training(job, (training) => {
    app.state.training = { job, ...training }
    if (training.answer?.better) app.state.model = training.answer.bundle
    showLearning()
  })
  shown()
}

function showTraining({ state, done, total, doing, message, answer }: Training): void {
  const bar = element<HTMLProgressElement>('trained')
  if (total) {
    bar.max = total
    bar.value = done
  } else bar.removeAttribute('value')
  const line = element('learned')
  const left = total ? `, ${Math.ceil((total - done) / 60)} min left` : ''
  line.textContent = answer ? told(answer) : state === 'failed' ? message : state === 'cancelled' ? 'cancelled' : `${doing || 'waiting'}${left}`
  line.classList.toggle('fault', state === 'failed')
}

function told({ metric, before, after, cases, better }: Learned): string {
  const [was, is] = [before, after].map((value) => (value === null ? 'no number' : String(Number(value.toPrecision(3)))))
  const by = before !== null && after !== null ? ` by ${Number(Math.abs(after - before).toPrecision(2))}` : ''
  const on = `${metric.replaceAll('_', ' ')} on ${cases} case${cases === 1 ? '' : 's'} that it has not seen: ${was} before, ${is} now`
  return better ? `Better${by}. ${on}. The page answers with the new model: predict again.` : `Not better, so the page keeps its model. ${on}.`
}
