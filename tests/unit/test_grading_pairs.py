r"""Two tables of pairs: what must never be accepted, and what must be. A line is `gold | answer ; answer ; ..`."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.grading import Gold, answer_type, grade

MUST_NOT = r"""
2 | two thirds ; two tenths ; two hundredths ; two dozens ; two pairs ; 2 twelfths ; 2 sixteenths ; 2 ths ; 2 bps
3 | three quarters ; three eighths ; three twentieths ; three thousandths ; 3 millionths ; 3 and 1/2 ; \overline{3x}
z | \overline{z} ; \bar z ; |z| ; z'
3+4i | \overline{3+4i} ; \bar{3+4i} ; 3-4i ; 3+4
7 | 3+4\mathrm{i} ; 3+4\mathrm{e} ; 7x ; 7...1 ; 7 \bmod 8
$5 | 5 cents ; 5 euros ; €5 ; £5 ; $500 ; $5 million ; 5%
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix} ; (1,2,3,4) ; -2
y=x^2 | |y|=x^2 ; y=x^2+0.0000001 ; y^2=x^4 ; xy=x^3+1
x+y=1 | |x|+|y|=1 ; \sqrt{x^2}+y=1 ; x-y=1
(2,3) | x = 2 or y=3 ; x=2, y=-3 ; y=2, x=3
3, 5 | a = 5, b = 3 ; 3, 5, 5.1 ; 3-5
blue | dark blue ; light blue ; non blue ; not blue ; blue and red
increase | no increase ; increase then decrease
True | partially true ; not true
Yes | yes and no ; Yes or no
No | no, wait, yes ; No. Actually yes
3 | -3 ; 4 ; 30 ; 0.3 ; 3! ; 3% ; 1/3 ; \sqrt{3} ; 3i ; x ; 3x ; 3\pi ; 3.0001 ; 2.9999999999 ; 3, 4 ; 3 or -3
3 | \pm 3 ; (3) (4) ; 33 ; three hundred ; 3 thousand ; 3^2 ; 3_{5} ; 3:1 ; 3 dozen ; \{3, 4\} ; [3, 4] ; 3 < x
3 | x \ge 3 ; ³ ; not 3
-3 | 3 ; --3 ; +3 ; |-3| ; -(-3) ; 3-
0.5 | 5 ; .05 ; 50 ; 5% ; 0.50001 ; -0.5 ; 1/5 ; 0,5,0
50% | 5 ; 51% ; 500 ; 0.05 ; 0.5% ; 5000% ; -50%
0.5% | 50% ; 0.05 ; 5
1/3 | 0.333 ; 0.3333333333 ; 33% ; 3 ; 1/4 ; -1/3 ; 1, 3 ; 1:2
12 | 1 2 ; 1,2 ; 1:2 ; 21 ; 12% ; 1.2 ; 12:00
5 cm | 5 m ; 50 cm ; 5 kg ; 5 mm ; 0.5 m ; 5 cm^2 ; -5 cm ; 5 km
5 cm^2 | 5 cm^3 ; 5 m^2 ; 25 cm^2 ; 50 mm^2 ; 5 kg
5 kg | 5 cm ; 5 s ; 500 g ; 5 mg
72 km/h | 20 m ; 72 m/s ; 72 km ; 2 m/s
30° | 60° ; \frac{\pi}{3} ; -30° ; 30 cm ; 30°C ; 3°
7 people | 7 children ; 8 people ; 70 people
\pi | 3.14 ; 3.14159265358979 ; 22/7 ; 2\pi ; \pi^2 ; -\pi ; 180
\sqrt{2} | 1.414 ; 1.41421356 ; -\sqrt{2} ; 2 ; \sqrt{3} ; \sqrt[3]{2}
2\sqrt{2} | \sqrt{2} ; 2+\sqrt{2} ; \sqrt{4} ; 2\sqrt{3} ; 4\sqrt{2}
\frac{1}{2004!} | \frac{1}{2006!} ; 0 ; \frac{1}{2004}
\frac{1}{2^{99}} | \frac{1}{2^{98}} ; 0
\frac{2^{2005}+1}{3 \cdot 2^{2006}} | \frac{1}{3 \cdot 2^{2006}} ; \frac{1}{6}
1-\frac{1}{e} | 1+\frac{1}{e} ; 1-e ; \frac{1}{e}
4 | 4\sqrt(2) ; 4\sqrt{2} ; 4^{2}
1/60 | 1/55 ; 1/61 ; 0.0167
2n+1 | 2n-1 ; 2n ; n+2 ; 2m+1 ; 2(n+1) ; 2^n+1
a+b | a-b ; ab ; A+b ; a+c ; -(a+b)
x^2 | 2x ; x^3 ; x ; -x^2 ; y^2
x_1 | x_2 ; x ; x_{11}
(1,2) | (2,1) ; [1,2] ; (1,2,3) ; (1,3) ; (-1,2) ; \{1,2\} ; 1 \le x < 2 ; 2,1 ; 3 ; (1,2]
[1,2] | [1,2) ; (1,2] ; (1,2) ; [2,1] ; [1,3] ; 1<x<2 ; \{1,2\} ; [-1,2]
(-\infty,1) | (\infty,1) ; (-\infty,1] ; (1,\infty) ; (-\infty,-1) ; x>1 ; x \le 1
(-\infty,1]\cup[10,+\infty) | (-\infty,1] ; (-\infty,1)\cup(10,+\infty) ; [1,10] ; (-\infty,10]\cup[1,+\infty)
x>3 | x \ge 3 ; x<3 ; y>3 ; x>4 ; 3 ; [3,\infty) ; x>-3
1<x<2 | 1 \le x<2 ; 1<x<3 ; 2<x<1 ; x<2 ; 1<y<2 ; [1,2]
\{1,2\} | \{1,3\} ; \{1\} ; \{1,2,3\} ; \{-1,2\} ; \{1,1\} ; 1 ; 2 ; (2,1)
1,-2 | 1 ; -2 ; 1,2 ; -1,2 ; 1,-2,3 ; -1,-2
3, 5, 7 | 3, 5 ; 3, 5, 8 ; 3, 5, 7, 9 ; 15 ; 357 ; 3
1 \pm \sqrt{19} | 1+\sqrt{19} ; 1 \pm \sqrt{17} ; -1 \pm \sqrt{19} ; 1-\sqrt{19} ; \sqrt{19} \pm 1
x^2+y^2=1 | x^2-y^2=1 ; x^2+y^2=2 ; x+y=1 ; x^2+y^2 ; 1
y=2x+1 | y=2x-1 ; y=-2x+1 ; x=2y+1 ; 2x-1 ; y=2x ; y>2x+1
3x-y+13=0 | 3x+4y+14=0 ; 3x+y+13=0 ; 3x-y-13=0
x=3 | x=-3 ; y=3 ; 4 ; x>3 ; -3
1:2 | 2:1 ; 1:3 ; 1 ; 2 ; 1:2:3 ; -1:2 ; 1.2 ; 12
2:3:4 | 2:3 ; 4:3:2 ; 2:3:5
17:06 | 17:07 ; 5:06 AM ; 17 ; 06:17 ; 17.06
52_8 | 52 ; 42 ; 52_7 ; 53_8 ; 101010_2 ; 25_8
10_2 | 10 ; 2 ; 11_2 ; 10_3
10 | 10_{2} ; 1010_2 ; 1:0 ; 10!
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} ; (2,1) ; 1
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & -4 \end{pmatrix} ; (1,2,3,4)
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{pmatrix} 1 & 2 & 3 & 4 \end{pmatrix}
A | B ; (D) ; A or B ; (A) or (B) ; a bird ; A, B ; AB ; not A ; (A),(B),(C) ; (A) 1 (B) 2 ; H. ; 1 ; I
A, C | A ; C ; A, B ; A, B, C ; B, D ; A or C ; C, D
Yes | No ; Not yes ; Maybe ; Y/N ; 1
even | odd ; not even ; neither ; even and odd
east | west ; not east ; northeast
Wednesday | Thursday ; Wed or Thu ; day
May | June ; maybe ; Mar
(1) 3; (2) 5 | (1) 5; (2) 3 ; (1) 3 ; 3 ; (1) 3; (2) -5 ; (1) 3; (2) 5; (3) 7 ; 8
(1)(3)(4) | (1)(3) ; (1)(2)(4) ; (1)(2)(3)(4) ; 1
7 \times 10^{35} | 7 \times 10^{34} ; 7.1 \cdot 10^{35} ; 7 \times 10^{-35} ; 7^{35}
\log_2 8 | 8 ; 2 ; \log_3 8 ; -3 ; \log 8
\sin x | \cos x ; \sin(-x) ; \sin 2x ; \sin^2 x ; x
n! | n ; (n+1)! ; n^2 ; 2n
2\sqrt{3} | 2\sqrt{2} \approx 3.46 ; 2\sqrt{3} \approx 3.45 ; 2\sqrt{3} \approx 34.6 ; 2\sqrt{3} \approx 2\sqrt{2}
2\sqrt{3} | 3.4641 \approx 3.46
2\sqrt{3} | 2\sqrt{3} \approx -3.46 ; 2\sqrt{5} = 3.46 ; 3\sqrt{2} \approx 4.24 ; \approx 3.46
2\sqrt{3} | 2\sqrt{3} \approx 3.464 \approx 3.46 ; 2\sqrt{3} \approx
2\sqrt{3} | 2\sqrt{3}, \approx 3.46, 4 ; 2\sqrt{3}a \approx 3.46a ; 2\sqrt{3} \approx x ; 12 \approx 2\sqrt{36}
3.46 | 2\sqrt{3} \approx 3.464 ; 2\sqrt{3} \approx 3.5 ; 3.44 \approx 3.46 ; 2\sqrt{2} \approx 3.46 ; 2\sqrt{3}
3.460 | 2\sqrt{3} \approx 3.46
3.5 | 2\sqrt{3} \approx 3.46 ; 2\sqrt{3} \approx 3
1/3 | 0.333 \approx 0.33 ; \frac14 \approx 0.333 ; \frac13 \approx 0.34 ; \frac13 \approx 3.33 ; 33\% \approx 0.33
1/3 | \frac{3}{10} \approx 0.3
3 | 2.6 \approx 3 ; \pi \approx 3 ; \sqrt{8} \approx 3 ; 3 \approx 4 ; \approx 3.2 ; \frac{10}{3} = 3.3 ; 3 \to 4
3 | 3 \sim 4 ; 3 \pm 0.1 ; 2 to 3 ; 3 to 4
50\pi\text{ cm}^2 | 50\pi \approx 157.08\text{ m}^2 ; 50\pi \approx 157.08\text{ cm} ; 49\pi \approx 153.94\text{ cm}^2
50\pi\text{ cm}^2 | 50\pi\text{ cm}^2 \approx 157.08\text{ m}^2
5 cm | 5 \approx 5.0\text{ m} ; 5\text{ m} \approx 5.0\text{ cm}
63.4^\circ | \arctan 3 \approx 63.4^\circ ; 2 \approx 63.4^\circ
\pi | 22/7 \approx 3.14 ; \frac{22}{7} \approx \pi ; \pi \approx 3.15
(1,\sqrt2) | (1,\sqrt3 \approx 1.41) ; (\sqrt2 \approx 1.41, 1)
8 | 3 + 5 = 9.0 ; 8 = 8.4 ; 7.6 \approx 8
1/2 | 2 \over 1 ; {2 \over 1} ; {1 \over 2} + 1 ; 1 \over 2 \over 1 ; 2{1 \over 2} ; -{1 \over 2} ; {1 \over 2}x
1/2 | \nicefrac{2}{1} ; 1\sfrac{1}{2} ; 1 \overline{2}
2 | 4 \over 2 , 3 ; \{4 \over 2
\frac{\sqrt{3}}{2} | {3 \over \sqrt{2}} ; {2 \over \sqrt{3}} ; \sqrt{3 \over 2} ; \sqrt{3} \over 4
52_8 | (52) ; (52)_7 ; (25)_8 ; (53)_8 ; (52)_{16} ; 52^8 ; (5,2)_8 ; 52 \text{ base } 9 ; -52_8 ; 58_8 ; 52 (base ten)
42 | (52)_8 ; 52 (base 8) ; 101010_2
52 | (52)_8 ; 34_{16} ; 52 base 8
2:3 | 3 to 2 ; 2 to 5 ; from 2 to 3 ; 2 to 3 hours ; 2 to 3 to 4 ; 2to3 ; 23 ; 2, 3
10 to 20 | 20 to 40 ; 0.5 ; \frac12 ; 15 ; 20 to 10 ; 10
2/3 | 2 to 3
[2,3] | 2 to 3
5 | 4 to 5 ; 5 to 1 ; 5 \text{ to } 6
4.40米 | 4.50米 ; 4.4 cm ; 4.40千米 ; 44
12平方厘米 | 12 cm ; 12平方米 ; 12立方厘米
7 | 2^{10^{12}} ; (10^9)! ; 9^{9^{9^{9}}} ; ７７ ; ٧٧ ; 7̸
"""

MUST = r"""
2\sqrt{3} | 2\sqrt{3} \approx 3.46 ; 2\sqrt3 ≈ 3.464 ; x = 2\sqrt{3} \approx 3.5 ; 3.46 \approx 2\sqrt{3}
2\sqrt{3} | 2\sqrt{3} = 3.46 ; 2\sqrt{3} = 3.4641 \approx 3.46
2\sqrt{3} | 2\sqrt{3} (\approx 3.46) ; 2\sqrt{3} \text{ or approximately } 3.46 ; 2\sqrt{3} \approx 3.46\text{ cm}
2\sqrt{3} | 2\sqrt{3}\text{ cm} \approx 3.46\text{ cm}
\frac13 | \frac13 \approx 0.333 ; 0.333 \approx \frac13 ; \frac13 \approx 33.3\% ; \frac13 = 0.33
\frac13 | \frac{1}{3} \approx 0.3
3.46 | 2\sqrt{3} \approx 3.46 ; 3.4641 \approx 3.46 ; 2\sqrt{3} = 3.46
157 | 50\pi \approx 157
157.08 | 50\pi \approx 157.08\text{ cm}^2
50\pi\text{ cm}^2 | 50\pi \approx 157.08\text{ cm}^2 ; 50\pi \approx 157.08
60° | \frac{\pi}{3} \approx 60^\circ ; 60 \approx 60.0^\circ
63.4^\circ | \arctan 2 \approx 63.4^\circ ; \tan^{-1} 2 \approx 63.4^\circ
33.3% | \frac13 \approx 33.3\%
x=\frac13 | x=\frac13 \approx 0.333 ; \frac13 \approx 0.33
\sqrt{2} \approx 1.414 | \sqrt2 ; 1.414 ; \sqrt2 \approx 1.41
(1,\sqrt2) | (1,\sqrt2 \approx 1.41)
\sqrt2, \sqrt3 | \sqrt2 \approx 1.41, \sqrt3 \approx 1.73
1/2 | 1 \over 2 ; {1 \over 2} ; x = {1 \over 2} ; x = 1 \over 2 ; {{1} \over {2}} ; \left({1 \over 2}\right)
1/2 | \nicefrac{1}{2} ; \sfrac{1}{2} ; \tfrac12 ; 1/2
\frac{\sqrt{3}}{2} | {\sqrt{3} \over 2} ; \sqrt{3} \over 2 ; \sqrt{3 \over 4} ; \nicefrac{\sqrt{3}}{2}
3.5 | 3\nicefrac{1}{2} ; 3\tfrac12
52_8 | (52)_8 ; (52)_{8} ; 52_{(8)} ; 52_{\text{eight}} ; 52 (base 8) ; 52 \text{ base } 8 ; 52 in base 8
52_8 | 52 base eight
(52)_8 | 52_8 ; 52_{8}
52 | 52_{10} ; (52)_{10}
2:3 | 2 to 3 ; 2 \text{ to } 3 ; 4 to 6 ; 2 ∶ 3 ; 2 \colon 3
2 to 3 | 2:3 ; 4:6 ; 2 to 3
4.40米 | 4.40 meters ; 4.4 ; 440 cm
12平方厘米 | 12 cm^2 ; 12
3 | \textbf{3} ; {\bf 3} ; \bm{3} ; \underline{3} ; \color{blue}{3} ; \textcolor{red}{3} ; 3\, ; 3\;
1234567 | 1\,234\,567 ; 1,\!234,\!567
3/4 | three fourths ; three quarters ; three-quarters
1/2 | one half ; one-half
60° | 60^o ; 60^{o}
3+4i | 3+4\mathrm{i}
$5 | 5 ; $5.00 ; \$5 ; 500 cents
18 | $18 ; $18.00
x+y=1 | x=1-y ; 2x+2y=2
8 | 8 ; 8.0 ; $8$ ; x = 8 ; 3 + 5 = 8 ; S_{\triangle ABC} = 8 ; 8 cm ; 16/2 ; \sqrt{64} ; 2^3 ; **8** ; +8
8 | eight ; 8. ; 8 apples ; \text{8} ; \frac{16}{2} ; 2 \times 4 ; 0008 ; ８ ; \boxed{8} ; about 8 ; = 8
8 | 8\,\mathrm{cm} ; 8\text{ units}
0.5 | 1/2 ; .5 ; 50% ; \frac12 ; 0.50 ; 50\% ; 5 \times 10^{-1} ; \sin 30^\circ ; 2^{-1}
50% | 0.5 ; 50 ; 50\% ; 1/2 ; 50 percent ; 50.0%
1/2 | \frac12 ; 0.5 ; 2/4 ; \dfrac{1}{2} ; ½ ; \frac{-1}{-2} ; 1 \div 2
1234 | 1,234 ; 1{,}234 ; 1234.00 ; 1.234 \times 10^3 ; one thousand two hundred thirty-four ; 1,\!234
5 cm | 5 ; 50 mm ; 0.05 m ; 5\text{ cm} ; 5 centimeters ; 5\,\mathrm{cm}
5 m^2 | 5 square meters ; 50000 cm^2 ; 5\text{ m}^2 ; 5
90 minutes | 1.5 hours ; 90 ; 90 min ; 1\frac{1}{2} hours
72 km/h | 20 m/s ; 72 ; 72\text{ km/h}
30° | 30 ; 30^{\circ} ; 30 degrees ; \frac{\pi}{6} ; 30^\circ ; 60°/2
\pi | \pi ; π ; \frac{2\pi}{2} ; 180°
2\sqrt{2} | \sqrt{8} ; 2√2 ; \frac{4}{\sqrt2} ; 2\sqrt{2}\text{ cm} ; 2^{3/2} ; \sqrt2+\sqrt2
-3 | −3 ; - 3 ; x=-3 ; -\frac{6}{2}
\tan^{-1} 2 | \arctan 2 ; \arctan(2)
2n+1 | 1+2n ; 2(n+1)-1 ; a_n = 2n+1 ; (n+1)+n
x^2-1 | (x-1)(x+1) ; -1+x^2 ; x \cdot x - 1
\frac{x+1}{2} | \frac{x}{2}+\frac12 ; (x+1)/2 ; 0.5x+0.5
(7, 3) | (7,3) ; \left(7, 3\right) ; A(7,3) ; (\frac{14}{2}, 3) ; x=7, y=3 ; \begin{pmatrix} 7 \\ 3 \end{pmatrix}
(1,2) | 1<x<2 ; (1, 2) ; (1.0,2.0) ; (x,y) = (1,2)
[-4,3] | \left[-4, 3\right] ; x \in [-4,3] ; -4 \le x \le 3 ; 3 \ge x \ge -4 ; \{x | -4 \le x \le 3\}
x>3 | (3,\infty) ; 3<x ; x \in (3, +\infty) ; \{x \mid x>3\}
1<x<2 | (1,2) ; 2>x>1 ; x \in (1,2) ; x>1 and x<2
x<1 \text{ or } x>2 | (-\infty,1)\cup(2,\infty) ; x>2 or x<1
(-\infty,1]\cup[10,+\infty) | (-\infty, 1] \cup [10, \infty) ; [10,\infty)\cup(-\infty,1] ; x \le 1 or x \ge 10
\{1,2\} | \{2,1\} ; x=1 or x=2 ; 2, 1 ; 1 and 2 ; \left\{1, 2\right\}
1,-2 | -2, 1 ; 1 and -2 ; x=1 or x=-2 ; \{1,-2\} ; 1, -2
3, 5, 7 | 7, 5, 3 ; 3,5,7 ; 3, 5 and 7 ; (3,5,7) ; \{3,5,7\}
1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} ; 1\pm\sqrt{19} ; x = 1 \pm \sqrt{19} ; \{1-\sqrt{19}, 1+\sqrt{19}\}
x^2+y^2=1 | 1-x^2-y^2=0 ; x^2=1-y^2 ; 2x^2+2y^2=2 ; y^2+x^2=1
y=-3x+18 | -3x+18 ; 3x+y=18 ; y = 18-3x
x=3 | 3 ; x = 3 ; 3.0 ; x=\frac{6}{2}
1:2 | 2:4 ; 1 : 2 ; 0.5:1 ; \frac12 ; 3:6
2:3:4 | 4:6:8 ; 2 : 3 : 4
17:06 | 17:06 ; 5:06 PM ; 5:06 p.m.
4:30 p.m. | 4:30 \text{ p.m.} ; 4:30 PM ; 16:30 ; 4:30
52_8 | 52_{8} ; 52_8 ; 052_8
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{bmatrix} 1 \\ 2 \end{bmatrix} ; (1,2)
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1.0 \\ \frac{4}{2} \end{pmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} | \begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{pmatrix}
A | A ; (A) ; A. ; \text{(A)} ; a ; A. 5 cm ; option A ; (a) ; **A** ; \textbf{A} ; A) ; [A] ; \mathrm{A}
A, C | C, A ; A and C ; AC ; A,C ; (A), (C) ; a, c ; A C
Yes | yes ; YES ; Yes. ; \text{Yes} ; Yes, because it is
even | Even ; \text{even} ; even function ; an even function
Wednesday | wednesday ; Wed ; \text{Wednesday}
October | Oct ; october
rhombus | Rhombus ; a rhombus ; the rhombus ; \text{rhombus}
eight | 8 ; Eight
(1) 3; (2) 5 | (1) 3 (2) 5 ; 3; 5 ; 3, 5 ; ① 3 ② 5 ; (1) $3$; (2) $5$
(1)(3)(4) | ①③④ ; (1)(3)(4) ; 1, 3, 4 ; (1), (3), (4)
7.8\times 10^2 | 780 ; 7.8e+2 ; 78 \cdot 10
8\sqrt{3}{squareinches} | 8\sqrt{3} ; 8\sqrt{3}\text{ square inches} ; \sqrt{192}
\{1\pm\sqrt{5},-2\} | \{-2, 1+\sqrt5, 1-\sqrt5\} ; -2, 1+\sqrt{5}, 1-\sqrt{5}
"""


def pairs(table: str) -> list[tuple[str, str]]:
    lines = [line.partition(" | ") for line in table.strip().splitlines()]
    return [(gold.strip(), answer.strip()) for gold, _, answers in lines for answer in answers.split(" ; ")]


def verdict(gold: str, answer: str) -> str:
    kind, why = answer_type(gold)
    assert kind, why
    return grade(rf"\boxed{{{answer}}}", Gold(gold, kind)).value


def test_the_tables_are_long_enough():
    assert len(set(pairs(MUST_NOT))) >= 150
    assert len(set(pairs(MUST))) >= 120


@pytest.mark.parametrize(("gold", "answer"), pairs(MUST_NOT))
def test_another_answer_is_never_accepted(gold, answer):
    assert verdict(gold, answer) != "right"


@pytest.mark.parametrize(("gold", "answer"), pairs(MUST))
def test_an_equal_answer_is_accepted(gold, answer):
    assert verdict(gold, answer) == "right"


# --- hostile responses ---------------------------------------------------------------------------------------------


def box(inside: str) -> str:
    return rf"\boxed{{{inside}}}"


HOSTILE = [
    box("2^{10^{12}}"),
    box("(10^9)!"),
    box("9^{9^{9^{9}}}"),
    box("10^{9999999999}"),
    box("1e999999999"),
    box("(999!)^{999}"),
    box("*".join(["1000!"] * 40)),
    box("*".join(["9^{6000}"] * 25)),
    box("+".join(["1/9^{6000}"] * 25)),
    box(r"\sin(10^{100})"),
    box("(1+10^{-100})^{10^{100}}"),
    box("x^{x^{x^{x^{x}}}}"),
    box("x^" * 190),
    box(r"\sqrt{2+" * 25 + "2" + "}" * 25),
    box(r"\sqrt{" * 39 + "2" + "}" * 39),
    box(r"\frac{" * 200),
    box("(" * 390),
    box("-" * 390 + "1"),
    box("9" * 390),
    box("0." + "3" * 390),
    box(",".join(["1"] * 190)),
    box(",".join([r"\pi"] * 90)),
    box(",".join(f"x_{i}" for i in range(70))),
    box(r"1 \pm 2, 3 \pm 4, 5 \pm 6"),
    box(r"\pm 1" * 60),
    box(r"\begin{pmatrix}" + r"1 & 2 \\ " * 40 + r"\end{pmatrix}"),
    box(r"\cup".join(["(1,2)"] * 45)),
    box("a:" * 190),
    box("x<1 or " * 45 + "x<2"),
    box("two hundred " * 30),
    box(r"\text{" * 60 + "1" + "}" * 60),
    box(r"\sin\cos\tan" * 30 + "x"),
    box("{" * 100_000 + "}" * 100_000),
    r"\boxed{" * 50_000,
    "{" * 100_000,
    "answer is " * 100_000,
    "Answer:\n" * 100_000,
    "the answer is A or " * 50_000,
    "answer to the " * 80_000,
    "correct option " * 80_000,
    "(A) (B) " * 100_000,
    "####" * 100_000,
    "<think>" * 100_000,
    "<answer>" * 100_000 + "</answer>",
    "1 " * 500_000,
    "\n" * 1_000_000,
    "$" * 1_000_000,
    "**Final Answer**\n" * 50_000,
    "I hope\n" * 100_000,
    "is 1" * 200_000,
    '{"short answer": ' * 50_000,
    box(r"1 \over " * 50 + "2"),
    box(r"{1 \over " * 40 + "2" + "}" * 40),
    box(r"\over" * 80),
    box("{" * 190 + r"1 \over 2"),
    box(r"2\sqrt{3} \approx " * 20 + "3.46"),
    box(r"\approx" * 60),
    box(r"2^{10^{12}} \approx 3.46"),
    box(r"\sqrt{2} \approx 1." + "4" * 350),
    box(r"\sqrt{2} = " * 40 + "1.41"),
    box(r"(10^9)! = 3.5"),
    box("about " * 70 + "3"),
    box("1 to " * 75 + "2"),
    box("(" * 100 + "52" + ")_8" * 90),
    box("F" * 380 + "_{16}"),
    box("1" * 380 + "_2"),
    box("3" + "米" * 390),
    "\\boxed{9999}. " + "Wait. " * 100_000,
    "\\boxed{9999}" + "\n \t" * 100_000,
    "\\boxed{9999}" + "$ ) ] . " * 100_000,
    "one might think " * 50_000 + "\\boxed{9999}",
    "if it were so, " * 50_000 + "the answer would be 9999",
    "\nQuestion: " * 100_000,
    "The answer is 9999.\n" + "\nQ: " * 100_000 + "\\boxed{9998}",
    "**9999** " * 100_000,
    "**" * 500_000,
    "There is 9999 or " * 60_000,
    "It would if it would if " * 40_000,
    "answer is 9999, answer is " * 60_000,
    "Option B would if " * 60_000,
]
GOLDS = [
    ("8", ()),
    ("3.5", ()),
    ("x^2+1", ()),
    ("y=x", ()),
    (r"2\sqrt{2}", ()),
    ("[1,2]", ()),
    ("x<1 or x>2", ()),
    ("1,-2", ()),
    (r"1 \pm \sqrt{19}", ()),
    ("1:2", ()),
    ("17:06", ()),
    ("52_8", ()),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", ()),
    ("Yes", ()),
    ("A, C", ()),
    ("(1) 3; (2) 5", ()),
    ("B", (r"\sqrt{2}", r"\pi^2", "x+1", "Yes")),
]


def test_hostile_responses_end_at_once():
    grade("Answer: 8", Gold("x^2+1", "expression"))  # the first formula loads mpmath
    slowest = 0.0
    for response in HOSTILE:
        for answer, options in GOLDS:
            kind, _ = answer_type(answer, options)
            started = time.thread_time()
            found = grade(response, Gold(answer, kind, options, is_prose=kind in ("integer", "choice")))
            slowest = max(slowest, time.thread_time() - started)
            assert found.value in ("wrong", "unknown"), (response[:60], answer)
    assert slowest < 0.25


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
def test_hostile_responses_stay_small():
    code = (
        "import re, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_grading_pairs import GOLDS, HOSTILE\n"
        "from components.grading import Gold, answer_type, grade\n"
        "for response in HOSTILE:\n"
        "    for answer, options in GOLDS[::8]:\n"
        "        grade(response, Gold(answer, answer_type(answer, options)[0], options))\n"
        "print(int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 200  # MB, the interpreter and its imports with it


def test_the_usual_answer_costs_microseconds():
    grade("answer = 8", Gold("8", "integer"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for _ in range(2000):
        grade("red = 3\n\nblue = 5\n\n3 + 5 = 8\n\nanswer = 8", Gold("8", "integer"))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_utime - before) / 2000 < 100e-6
