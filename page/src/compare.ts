// an image that was made, beside the one that it was made from: over it, swiped, or as the difference
import { SLICE_TYPE } from '@niivue/niivue'
import { app, attempt, element, make } from './app'
import { server } from './server'

const WAYS = ['over', 'swipe', 'difference'] as const
const TOLD = {
  over: 'The answer lies over the image.',
  swipe: 'Left of the slider the image, right of it the answer.',
  difference: 'The answer less the image: grey where they are alike, white where it is more.',
}
type Way = (typeof WAYS)[number]

let way: Way = 'over'
let name: string | null = null

export function prepareComparison(opacity: () => number): void {
  for (const one of WAYS) {
    const onclick = attempt(async () => {
      way = one
      await compare(name, opacity())
    })
    element('ways').append(make('button', { textContent: one[0].toUpperCase() + one.slice(1), onclick, type: 'button' }))
  }
  element('cut').oninput = cut
}

/** Show an image that was made, in the way that was chosen; null: there is none. */
export async function compare(made: string | null, opacity: number): Promise<void> {
  name = made
  app.scene.clear()
  app.scene.uncover()
  element('comparison').hidden = made === null
  element('over').hidden = made === null || way === 'over'
  element('cut').hidden = made === null || way !== 'swipe'
  element('told').textContent = TOLD[way]
  for (const [place, button] of [...element('ways').children].entries()) button.classList.toggle('on', WAYS[place] === way)
  if (made === null) return
  const url = way === 'difference' ? server.difference(app.current, made) : server.file(app.current, made)
  if (way === 'over') await app.scene.overlay(url, made, false, opacity)
  else {
    if (way === 'swipe' && app.scene.sliceType === SLICE_TYPE.MULTIPLANAR) app.scene.slices(SLICE_TYPE.AXIAL)
    const over = element<HTMLCanvasElement>('over')
    over.ariaBusy = 'true'
    await app.scene.cover(over, url, made, way === 'difference')
    cut()
    over.ariaBusy = 'false'
  }
}

/** Left of the slider lies the image, right of it what was made. */
function cut(): void {
  const share = Number(element<HTMLInputElement>('cut').value)
  element('over').style.clipPath = way === 'swipe' ? `inset(0 0 0 ${100 * share}%)` : ''
}
